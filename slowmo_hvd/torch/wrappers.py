"""Optimizers around optimizers: Accelerate's, Lightning's, and a user's own."""

from collections.abc import Iterator
from typing import Any

_DEEPEST = 10


def layers(optimizer: Any) -> Iterator[Any]:
    """``optimizer`` and what it and those inside it hold as ``.optimizer``, outermost first."""
    for _ in range(_DEEPEST):
        if optimizer is None:
            return
        yield optimizer
        optimizer = getattr(optimizer, "optimizer", None)
