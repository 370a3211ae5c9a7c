"""What the ranks of a test tell each other, in a session of either framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest
from framework import horovod

if TYPE_CHECKING:
    from torch import Tensor, nn


def everyone(value: Any) -> list[Any]:
    """Every rank's ``value``, in rank order. A collective."""
    gathered: list[Any] = horovod().allgather_object(value)
    return gathered


def by_rank(*values: Any) -> Any:
    """The one of ``values`` that is this rank's."""
    return values[horovod().rank()]


def equal_on_all_ranks(params: nn.Module | Sequence[Tensor]) -> bool:
    """Whether all ranks hold these weights of a torch model, bit for bit. A collective."""
    from models import same, weights  # a session of TensorFlow has no torch

    copies = everyone(weights(params))
    return all(same(copies[0], copy) for copy in copies)


def same_error_everywhere(error: type[Exception], match: str, action: Callable[[], object]) -> str:
    """Require that ``action`` raises on every rank, with one text; return it. A collective."""
    with pytest.raises(error, match=match) as raised:
        action()
    texts = everyone(str(raised.value))
    assert len(set(texts)) == 1, texts
    return texts[0]
