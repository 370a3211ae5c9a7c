"""Line 2 of Algorithm 1: what happens to the inner optimizer's buffers when a window begins."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from slowmo_hvd.core.buckets import Leaf
from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.gathering import gather_json
from slowmo_hvd.core.pace import refuse_copies, refuse_counts, refuse_few
from slowmo_hvd.core.pipeline import Load
from slowmo_hvd.core.roll_call import RollCall
from slowmo_hvd.torch.fresh_state import counts_of, forget, reset
from slowmo_hvd.torch.means import BufferKey, key_of, sums
from slowmo_hvd.torch.parameters import parameters_of
from slowmo_hvd.torch.rooms import Room, read, real, slow_dtype, write
from slowmo_hvd.torch.second_copies import SecondCopies, second_copies
from slowmo_hvd.torch.tensors import SlowModel
from slowmo_hvd.torch.transport import Transport


def check_strategy(strategy: str, inner: torch.optim.Optimizer) -> None:
    """Raise ValueError if this optimizer's buffers cannot be treated with this strategy."""
    if strategy != "reset" and isinstance(inner, torch.optim.LBFGS):
        raise ValueError(
            f"buffers={strategy!r} cannot be used with LBFGS: its history pairs gradients with "
            "steps, and an outer step breaks the pairs; use 'reset'"
        )
    options = inner.param_groups[0]
    if strategy != "maintain" and {"d", "d0"} <= options.keys():  # Prodigy, D-Adaptation
        raise ValueError(
            f"buffers={strategy!r} cannot be used with {type(inner).__name__}: it estimates its "
            "learning rate d from all steps since the first, and neither new buffers nor the "
            "workers' mean fit that; use 'maintain'"
        )
    if strategy == "reset" and options.get("warmup_steps"):  # of schedule-free optimizers
        raise ValueError(
            f"buffers='reset' would take {type(inner).__name__}'s count back before its "
            f"warmup_steps={options['warmup_steps']} are done: use a learning-rate scheduler that "
            "warms up in their place, or 'maintain' or 'average'"
        )


def check_pace(inner: torch.optim.Optimizer, config: SlowMoConfig) -> None:
    """Raise ValueError if an overlap or fragments do not fit this optimizer.

    Args:
        inner: the optimizer.
        config: the number of steps that overlap, and the number of fragments.
    """
    name, copies, counts = type(inner).__name__, second_copies(inner), counts_of(inner)
    refuse_few(config, len(parameters_of(inner)), "parameters")
    for setting in ("overlap_steps", "fragments"):
        given = getattr(config, setting)
        if isinstance(inner, torch.optim.LBFGS) and given > getattr(SlowMoConfig, setting):
            raise ValueError(
                f"{setting}={given} cannot be used with LBFGS: its history is of steps from where "
                "all of the weights were, and these would move inside it"
            )
    if copies:
        refuse_copies(config, name, copies)
    if counts:
        refuse_counts(config, name, list(counts))


class Buffers:
    """The inner optimizer's buffers and its copies of the weights, through the syncs.

    Which buffers can be averaged depends on the gradients that a worker has seen: a worker that
    never had a gradient for a parameter has no buffer for it. So the workers must agree on a list
    of buffers before they can sum them. In the header of a sync each worker says whether it has
    news, that is, a buffer outside the agreed list. The sum of these answers is equal everywhere,
    and so is the decision to agree again. Step counts and other integers are never averaged.
    """

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        config: SlowMoConfig,
        transport: Transport,
    ) -> None:
        self.inner = inner
        self.strategy = config.buffers
        check_strategy(config.buffers, inner)
        check_pace(inner, config)
        self.copies = SecondCopies(inner)
        self.transport = transport
        self.bucket_bytes = config.bucket_bytes
        self.agreed: tuple[BufferKey, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """For deepcopy and pickle: a copy has agreed with nobody."""
        return {**self.__dict__, "agreed": ()}

    @property
    def _averages(self) -> bool:
        return self.strategy == "average"

    def finite(self) -> bool:
        """Whether every number that this worker would send is finite."""
        return self.copies.finite() and not (self._averages and not self._finite())

    def _finite(self) -> bool:
        sums = [
            buffer.sum(dtype=slow_dtype(buffer.dtype)) for buffer in _buffers(self.inner).values()
        ]  # not norms: squares of Adam's second moments do not fit float32
        if not sums:
            return True
        device = sums[0].device  # synchronise with a GPU only once
        return bool(torch.stack([total.double().to(device) for total in sums]).isfinite().all())

    def has_news(self) -> bool:
        """Whether this worker has a buffer that is not in the agreed list."""
        return self._averages and not set(_buffers(self.inner)).issubset(self.agreed)

    def cross(
        self, slow: SlowModel, fragments: Collection[int], *, sound: bool, opens_window: bool
    ) -> "_Crossing":
        """Begin a sync."""
        inside = {position for fragment in fragments for position in slow.parts[fragment]}
        return _Crossing(self, slow, self.strategy, inside, sound=sound, opens_window=opens_window)

    def stop(self, slow: SlowModel, *, sound: bool) -> "_Crossing":
        """Begin when parameters stop being trained."""
        return _Stop(self, slow, "maintain", set(slow.params), sound=sound, opens_window=False)


class _Crossing:
    """The inner optimizer's part in one sync."""

    def __init__(
        self,
        buffers: Buffers,
        slow: SlowModel,
        strategy: str,
        inside: Collection[int],
        *,
        sound: bool,
        opens_window: bool,
    ) -> None:
        self._buffers = buffers
        self._slow = slow
        self._strategy = strategy
        self._inside = inside  # the positions of the parameters that are synchronised
        self._sound = sound
        self._resets = strategy == "reset" and opens_window
        params = {where: param for where, param in slow.params.items() if where in inside}
        # A reset drops the copies.
        self._copies = {} if self._resets else buffers.copies.keyed(params)
        self.changed = bool(self._copies)
        if sound:
            buffers.copies.measure(self._copies, params)

    def loads(self, roll: RollCall, name: str, *, news: bool) -> Iterator[Load]:
        if self._strategy == "average":
            if news:
                self._agree(f"{name}.keys")
            yield from self._average(f"{name}.buffers")
        if self._copies:
            yield from self._follow(roll.present, f"{name}.copies")

    def _agree(self, name: str) -> None:
        """Make the list the union of all workers' buffers. A collective."""
        keys = set(self._buffers.agreed)
        own = list(self._own())
        for theirs in gather_json(own, partial(self._buffers.transport.gather, name=name)).values():
            keys.update(BufferKey(*key) for key in theirs)
        self._buffers.agreed = tuple(sorted(keys))

    def _own(self) -> dict[BufferKey, Tensor]:
        return _buffers(self._buffers.inner) if self._sound else {}

    def _average(self, name: str) -> Iterator[Load]:
        """Average the agreed buffers over the workers that have them.

        They are never compressed: Adam divides by second moments, which half precision rounds to 0.
        """
        own = self._own()
        keys = [key for key in self._buffers.agreed if key.position in self._inside]
        owners = self._owners(keys, own, name)

        def land(key: BufferKey, inside: slice, total: Tensor) -> None:
            if key in own:
                write(own[key], inside, total / owners[key])

        return self._sums(keys, own, land, "buffers")

    def _follow(self, workers: int, name: str) -> Iterator[Load]:
        """Move the copies with the new weights.

        A worker may have no copy, because it has seen no gradient yet or was left out. It will
        start one at the weights. Then the others' copies are also set to the weights.
        """
        copies = {key: copy for key, copy in self._copies.items() if copy is not None}
        own = copies if self._sound else {}
        owners = self._owners(self._copies, own, name)

        def land(key: BufferKey, inside: slice, total: Tensor) -> None:
            if key in copies:
                mean = total / workers if owners[key] == workers else torch.zeros_like(total)
                weights = read(real(self._slow.params[key.position]), inside)
                write(copies[key], inside, mean.add_(weights))

        return self._sums(self._copies, own, land, "copies")

    def _owners(
        self, keys: Iterable[BufferKey], own: Collection[BufferKey], name: str
    ) -> dict[BufferKey, float]:
        """The number of workers that have each. A collective."""
        transport, keys = self._buffers.transport, list(keys)
        counts = transport.sum_numbers([float(key in own) for key in keys], name)
        return dict(zip(keys, counts, strict=True))

    def _sums(
        self,
        keys: Iterable[BufferKey],
        own: Mapping[BufferKey, Tensor],
        land: Callable[[BufferKey, slice, Tensor], None],
        what: str,
    ) -> Iterator[Load]:
        params = parameters_of(self._buffers.inner)
        leaves = {}
        for key in keys:
            dtype = torch.float64 if key.wide else torch.float32
            leaves[key] = Leaf(key.elements, Room(params[key.position].device, dtype, dtype), 0)
        return sums(leaves, own, land, self._buffers.bucket_bytes, what)

    def end(self) -> None:
        if not self._sound:
            forget(self._buffers.inner)
        elif self._resets:
            params = parameters_of(self._buffers.inner)
            reset(self._buffers.inner, [params[position] for position in sorted(self._inside)])


class _Stop(_Crossing):
    """Parameters stop being trained: the buffers of the others go on."""

    def end(self) -> None:
        pass


def _buffers(inner: torch.optim.Optimizer) -> dict[BufferKey, Tensor]:
    """The inner optimizer's float buffers, by their keys."""
    return dict(_keyed(inner))


def _keyed(inner: torch.optim.Optimizer) -> Iterator[tuple[BufferKey, Tensor]]:
    copies = second_copies(inner)
    for position, param in enumerate(parameters_of(inner)):
        for key, value in inner.state.get(param, {}).items():
            if key not in copies and _is_buffer(key, value, param):
                yield key_of(position, key, value), real(value)


def _is_buffer(key: Any, value: Any, param: Tensor) -> bool:
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return False
    # torch counts steps in float tensors without dimensions, under "step".
    return key != "step" and (value.dim() > 0 or param.dim() == 0)
