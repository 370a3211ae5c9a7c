"""Optimizers that keep the weights a second time, and would undo a sync from that copy.

Schedule-free ones take their steps in z and keep an average x of it. The parameter holds
y = (1 - μ) z + μ x, and each step pulls it towards z, so z takes part in a sync. Algorithm 1 acts
on y; of z the workers average how far it is from y, and it moves with y:

    z  ←  y + mean_i (zⁱ - yⁱ)

x, an affine combination of both, is averaged and moved alike by that, and with one worker and β = 0
nothing changes. To put z to where y is would forget x at every sync. To leave each worker its own
distance would let these grow without bound: at the optimum of the workers' mean loss, their own
gradients do not vanish.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from slowmo_hvd.core.checks import check_copies
from slowmo_hvd.torch.means import BufferKey, key_of
from slowmo_hvd.torch.rooms import real


def second_copies(inner: torch.optim.Optimizer) -> tuple[str, ...]:
    """The keys of ``inner.state[parameter]`` under which it keeps copies of the weights.

    An optimizer says so itself, by an attribute ``second_copies``; schedule-free ones are known.

    Raises:
        TypeError: the attribute is no tuple of str.
    """
    keys = getattr(inner, "second_copies", None)
    if keys is None:
        names = [cls.__name__ for cls in type(inner).__mro__ if "ScheduleFree" in cls.__name__]
        if not names:
            return ()
        return ("z", "x", "y") if any("Reference" in name for name in names) else ("z",)
    return check_copies(type(inner).__name__, keys)


@contextlib.contextmanager
def in_train_mode(inner: torch.optim.Optimizer) -> Iterator[None]:
    """Have the parameters be what is trained, y, and after it again what they were.

    After ``eval()`` a schedule-free optimizer has x in them. Local to this rank: others may be in
    the other mode.
    """
    if inner.param_groups[0].get("train_mode") is not False:
        yield
        return
    optimizer: Any = inner
    optimizer.train()
    try:
        yield
    finally:
        optimizer.eval()


class SecondCopies:
    """The copies of the weights that one inner optimizer keeps."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self._inner = inner
        self.names = second_copies(inner)

    def finite(self) -> bool:
        """Whether all copies of this worker are."""
        copies = (self._copy(param, name) for param in self._inner.state for name in self.names)
        return all(copy is None or bool(copy.isfinite().all()) for copy in copies)

    def keyed(self, params: Mapping[int, Tensor]) -> dict[BufferKey, Tensor | None]:
        """The copies of these parameters, given by position; the same keys on every rank."""
        return {
            key_of(where, name, param): self._copy(param, name)
            for where, param in params.items()
            for name in self.names
        }

    def measure(
        self, copies: Mapping[BufferKey, Tensor | None], params: Mapping[int, Tensor]
    ) -> None:
        """Put in each copy's place how far it is from the weights, before a sync moves these."""
        for key, copy in copies.items():
            if copy is not None:
                copy.sub_(real(params[key.position]))

    def _copy(self, param: Tensor, name: str) -> Tensor | None:
        copy = self._inner.state.get(param, {}).get(name)
        if copy is None:
            return None
        if not isinstance(copy, Tensor) or copy.shape != param.shape:
            raise ValueError(
                f"{type(self._inner).__name__}.second_copies names {name!r}, and what its state "
                "has under that is no tensor of the parameter's shape"
            )
        return real(copy)
