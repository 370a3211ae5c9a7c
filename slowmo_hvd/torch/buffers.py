"""Line 2 of Algorithm 1: what a new window finds in the inner optimizer's buffers."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import horovod.torch as hvd
import torch
from torch import Tensor

from slowmo_hvd.core.gathering import Gather, gather_json
from slowmo_hvd.torch.exchange import sum_
from slowmo_hvd.torch.slow_model import real, slow_dtype


def resolve_strategy(strategy: str, inner: torch.optim.Optimizer) -> str:
    """Choose "reset", "maintain" or "average" for this optimizer.

    "auto" resets for SGD and maintains for all others, as the paper does for SGD and Adam. It
    also resets LBFGS: its history pairs gradients with steps, and an outer step breaks the pairs.

    Raises:
        ValueError: "average" for LBFGS, whose history has no counterpart on other workers.
    """
    lbfgs = isinstance(inner, torch.optim.LBFGS)
    if strategy == "auto":
        return "reset" if lbfgs or isinstance(inner, torch.optim.SGD) else "maintain"
    if strategy == "average" and lbfgs:
        raise ValueError(
            "buffers='average' cannot be used with LBFGS: its history lists differ in length "
            "between workers; use 'reset' (what 'auto' does) or 'maintain'"
        )
    return strategy


def reset(inner: torch.optim.Optimizer) -> None:
    """Leave the inner optimizer as if it had taken no step: moments and step counts alike.

    A step count that survived its moments would switch Adam's bias correction off.
    """
    inner.state.clear()
    if isinstance(inner, torch.optim.Adagrad):  # in torch, the one that fills its state when made
        fresh = type(inner)(
            [{"params": group["params"]} for group in inner.param_groups], **inner.defaults
        )
        inner.state.update(fresh.state)


class BufferKey(NamedTuple):
    """One buffer that some worker has, by its parameter's position and its key in the state."""

    position: int
    key: str
    elements: int
    wide: bool  #: float64, not float32, on the wire


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
        flats, parts = self._allocate(_parameters(inner))
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

    def _allocate(self, params: list[Tensor]) -> tuple[list[Tensor], dict[BufferKey, Tensor]]:
        """Flat tensors, one a device and dtype, with room for one count a key in the first."""
        rooms: dict[tuple[torch.device, torch.dtype], list[BufferKey]] = {}
        for key in self._agreed:
            dtype = torch.float64 if key.wide else torch.float32
            rooms.setdefault((params[key.position].device, dtype), []).append(key)
        flats: list[Tensor] = []
        parts: dict[BufferKey, Tensor] = {}
        for (device, dtype), keys in rooms.items():
            size = sum(key.elements for key in keys)
            spare = len(self._agreed) if not flats else 0
            flat = torch.zeros(size + spare, dtype=dtype, device=device)
            pieces = torch.split(flat[:size], [key.elements for key in keys])
            parts.update(zip(keys, pieces, strict=True))
            flats.append(flat)
        return flats, parts


def _parameters(inner: torch.optim.Optimizer) -> list[Tensor]:
    return [param for group in inner.param_groups for param in group["params"]]


def _buffers(inner: torch.optim.Optimizer) -> dict[BufferKey, Tensor]:
    """The inner optimizer's float buffers, by their keys."""
    return dict(_keyed(inner))


def _keyed(inner: torch.optim.Optimizer) -> Iterator[tuple[BufferKey, Tensor]]:
    for position, param in enumerate(_parameters(inner)):
        for key, value in inner.state.get(param, {}).items():
            if _is_buffer(key, value, param):
                buffer = real(value)
                wide = slow_dtype(buffer.dtype) == torch.float64
                yield BufferKey(position, key, buffer.numel(), wide), buffer


def _is_buffer(key: Any, value: Any, param: Tensor) -> bool:
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return False
    # torch counts steps in float tensors without dimensions, under "step".
    return key != "step" and (value.dim() > 0 or param.dim() == 0)
