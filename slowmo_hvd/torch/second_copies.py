"""Optimizers that keep the weights a second time, and would undo a sync from that copy.

Schedule-free optimizers take their steps in z and keep an average x of it. The parameter holds y =
(1 - μ) z + μ x, and each step pulls it towards z, so z takes part in a sync. Algorithm 1 acts on y.
For z, the workers average its distance from y, and it moves with y:

    z  ←  y + mean_i (zⁱ - yⁱ)

x is an affine combination of both, so it is averaged and moved in the same way. With one worker and
β = 0 nothing changes. If z were set to y, every sync would forget x. If each worker kept its own
distance, these would grow without bound: at the optimum of the workers' mean loss, their own
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

    An optimizer names them in an attribute ``second_copies``. Schedule-free ones are known.

    Raises:
        TypeError: the attribute is not a tuple or list of str.
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
    """Let the parameters hold what is trained, y, and then again what they held before.

    After ``eval()`` a schedule-free optimizer has x in them. This is local to this rank: others can
    be in the other mode.
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
        """Whether all copies on this worker are finite."""
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
        """Replace each copy by its distance from the weights, before a sync moves the weights."""
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
