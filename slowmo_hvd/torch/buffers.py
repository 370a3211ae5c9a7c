"""Line 2 of Algorithm 1: what a new window finds in the inner optimizer's buffers."""

from collections.abc import Iterator
from typing import Any

import horovod.torch as hvd
import torch
from torch import Tensor

from slowmo_hvd.core.gathering import Gather, gather_json
from slowmo_hvd.torch.buffer_wire import BufferKey, allocate, key_of
from slowmo_hvd.torch.exchange import sum_
from slowmo_hvd.torch.parameters import parameters_of
from slowmo_hvd.torch.second_copies import second_copies
from slowmo_hvd.torch.slow_model import real, slow_dtype


def resolve_strategy(strategy: str, inner: torch.optim.Optimizer) -> str:
    """Choose "reset", "maintain" or "average" for this optimizer.

    "auto" resets for SGD and maintains for all others, as the paper does for SGD and Adam. It
    also resets LBFGS: its history pairs gradients with steps, and an outer step breaks the pairs.

    Raises:
        ValueError: "average" for LBFGS, whose history has no counterpart on other workers; a
            strategy other than "maintain" for an optimizer that estimates its learning rate;
            "reset" for one whose own warm-up would begin again each time.
    """
    lbfgs = isinstance(inner, torch.optim.LBFGS)
    if strategy == "auto":
        return "reset" if lbfgs or isinstance(inner, torch.optim.SGD) else "maintain"
    if strategy == "average" and lbfgs:
        raise ValueError(
            "buffers='average' cannot be used with LBFGS: its history lists differ in length "
            "between workers; use 'reset' (what 'auto' does) or 'maintain'"
        )
    options = inner.param_groups[0]
    if strategy != "maintain" and {"d", "d0"} <= options.keys():  # Prodigy, D-Adaptation
        raise ValueError(
            f"buffers={strategy!r} cannot be used with {type(inner).__name__}: it estimates its "
            "learning rate d from all steps since the first, and neither new buffers nor the "
            "workers' mean fit that; use 'maintain' (what 'auto' does)"
        )
    if strategy == "reset" and options.get("warmup_steps"):  # of schedule-free ones
        raise ValueError(
            f"buffers='reset' would take {type(inner).__name__}'s count back before its "
            f"warmup_steps={options['warmup_steps']} are done: use a learning-rate scheduler that "
            "warms up in their place, or 'maintain' (what 'auto' does) or 'average'"
        )
    return strategy


class BufferAverage:
    """The "average" strategy: every float buffer becomes its mean over the workers that have it.

    Which buffers there are depends on the gradients that a worker has seen, so the workers must
    agree on a list of them before they can sum: a worker that never had a gradient for a
    parameter has no buffer for it. Along with its displacement each worker says whether it has
    news, a buffer outside the agreed list; the sum of those is equal everywhere, and so is the
    decision to agree anew. Step counts and other integers are never averaged.
    """

    def __init__(self) -> None:
        self._agreed: tuple[BufferKey, ...] = ()

    def has_news(self, inner: torch.optim.Optimizer) -> bool:
        """Whether this worker has a buffer that is not in the agreed list."""
        return not set(_buffers(inner)).issubset(self._agreed)

    def finite(self, inner: torch.optim.Optimizer) -> bool:
        """Whether every number that this worker would send is finite."""
        sums = [
            buffer.sum(dtype=slow_dtype(buffer.dtype)) for buffer in _buffers(inner).values()
        ]  # not their norms: Adam's second moments have no squares in float32
        if not sums:
            return True
        device = sums[0].device  # one look at a GPU
        return bool(torch.stack([total.double().to(device) for total in sums]).isfinite().all())

    def agree(self, inner: torch.optim.Optimizer, gather: Gather) -> None:
        """Make the list the union of all workers' buffers. A collective, by ``gather``."""
        keys = set(self._agreed)
        for theirs in gather_json(list(_buffers(inner)), gather).values():
            keys.update(BufferKey(*key) for key in theirs)
        self._agreed = tuple(sorted(keys))

    def average(self, inner: torch.optim.Optimizer, *, name: str, process_set: Any) -> int:
        """Average the agreed buffers over the workers that have them; return the bytes sent.

        Never compressed: Adam divides by second moments, which half precision rounds to 0.
        """
        if not self._agreed:  # agreed, hence empty on every rank or on none
            return 0
        buffers = _buffers(inner)
        flats, parts = allocate(self._agreed, dict(enumerate(parameters_of(inner))))
        tail = flats[0][flats[0].numel() - len(self._agreed) :]
        for index, key in enumerate(self._agreed):
            if key in buffers:
                parts[key].copy_(buffers[key].reshape(-1))
                tail[index] = 1
        sent = sum_(
            flats, tail, name=name, compression=hvd.Compression.none, process_set=process_set
        )
        for key, owners in zip(self._agreed, tail.tolist(), strict=True):
            if key in buffers:
                buffer = buffers[key]
                buffer.copy_((parts[key] / owners).view(buffer.shape))
        return sent


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
