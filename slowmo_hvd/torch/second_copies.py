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
from typing import Any, NamedTuple

import horovod.torch as hvd
import torch
from torch import Tensor

from slowmo_hvd.core.checks import check_copies
from slowmo_hvd.torch.buffer_wire import BufferKey, allocate, key_of
from slowmo_hvd.torch.exchange import sum_
from slowmo_hvd.torch.slow_model import real


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


class Distances(NamedTuple):
    """How far a worker's copies are from its weights, flat, for the wire.

    Attributes:
        params: the parameters by their position.
        keys: the copies in order, equal on every rank.
        flats: what is summed; the first ends in a 1 for each copy that this worker has.
        parts: each copy's place in them.
    """

    params: Mapping[int, Tensor]
    keys: list[BufferKey]
    flats: list[Tensor]
    parts: dict[BufferKey, Tensor]

    @property
    def owners(self) -> Tensor:
        """How many workers have each copy, once it is summed."""
        return self.flats[0][self.flats[0].numel() - len(self.keys) :]


class SecondCopies:
    """The copies of the weights that one inner optimizer keeps, and what a sync does to them."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self._inner = inner
        self.names = second_copies(inner)

    def finite(self) -> bool:
        """Whether all copies of this worker are."""
        copies = (self._copy(param, name) for param in self._inner.state for name in self.names)
        return all(copy is None or bool(copy.isfinite().all()) for copy in copies)

    def distances(self, params: Mapping[int, Tensor], *, sound: bool) -> Distances | None:
        """How far the copies are from the weights, before a sync moves these.

        Args:
            params: the parameters that are synchronised by their position, the same on every rank.
            sound: whether this worker contributes.

        Returns:
            None where the optimizer keeps no copies, which is equal on every rank.
        """
        if not self.names or not params:
            return None
        keys = [
            key_of(where, name, param) for where, param in params.items() for name in self.names
        ]
        distances = Distances(params, keys, *allocate(keys, params))
        for index, key in enumerate(keys):
            copy = self._copy(params[key.position], key.key)
            if sound and copy is not None:
                weight = real(params[key.position])
                distances.parts[key].copy_(copy.reshape(-1)).sub_(weight.reshape(-1))
                distances.owners[index] = 1
        return distances

    def follow(
        self, distances: Distances | None, workers: int, *, name: str, process_set: Any
    ) -> int:
        """Put the copies to where they belong beside the new weights; return the bytes sent.

        A collective. A worker without a copy, since it has seen no gradient yet or was left out,
        will begin one where the weights are: then so do the others'.

        Args:
            distances: what `distances` returned.
            workers: how many are in this sync, those that were left out among them.
            name: the collective's name, in use for nothing else.
            process_set: the ranks that take part, this one among them.
        """
        if distances is None:
            return 0
        sent = sum_(
            distances.flats,
            distances.owners,
            name=name,
            compression=hvd.Compression.none,
            process_set=process_set,
        )
        for key, owners in zip(distances.keys, distances.owners.tolist(), strict=True):
            copy = self._copy(distances.params[key.position], key.key)
            if copy is not None:
                weight, total = real(distances.params[key.position]), distances.parts[key]
                mean = total / workers if owners == workers else torch.zeros_like(total)
                copy.copy_(mean.view(copy.shape).add_(weight))
        return sent

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
