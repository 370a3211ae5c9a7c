"""What the ranks of a test tell each other."""

from collections.abc import Callable, Sequence
from typing import Any

import horovod.torch as hvd
import pytest
from models import same, weights
from torch import Tensor, nn


def everyone(value: Any) -> list[Any]:
    """Every rank's ``value``, in rank order. A collective."""
    gathered: list[Any] = hvd.allgather_object(value)
    return gathered


def by_rank(*values: Any) -> Any:
    """The one of ``values`` that is this rank's."""
    return values[hvd.rank()]


def equal_on_all_ranks(params: nn.Module | Sequence[Tensor]) -> bool:
    """Whether all ranks hold these weights, bit for bit. A collective."""
    copies = everyone(weights(params))
    return all(same(copies[0], copy) for copy in copies)


def same_error_everywhere(error: type[Exception], match: str, action: Callable[[], object]) -> str:
    """Require that ``action`` raises on every rank, with one text; return it. A collective."""
    with pytest.raises(error, match=match) as raised:
        action()
    texts = everyone(str(raised.value))
    assert len(set(texts)) == 1, texts
    return texts[0]
