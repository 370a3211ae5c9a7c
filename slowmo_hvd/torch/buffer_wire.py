"""Room on the wire for many of the inner optimizer's buffers, one after another."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from slowmo_hvd.torch.slow_model import real, slow_dtype


class BufferKey(NamedTuple):
    """One buffer that some worker has, by its parameter's position and its key in the state."""

    position: int
    key: str
    elements: int
    wide: bool  #: float64, not float32, on the wire


def key_of(position: int, key: str, tensor: Tensor) -> BufferKey:
    """The key of a buffer that is like ``tensor``."""
    buffer = real(tensor)
    return BufferKey(position, key, buffer.numel(), slow_dtype(buffer.dtype) == torch.float64)


def allocate(
    keys: Sequence[BufferKey], params: Mapping[int, Tensor]
) -> tuple[list[Tensor], dict[BufferKey, Tensor]]:
    """Flat tensors of zeros, one a device and dtype, with room for one count a key in the first.

    Returns:
        The flat tensors, and each key's part of them.
    """
    rooms: dict[tuple[torch.device, torch.dtype], list[BufferKey]] = {}
    for key in keys:
        dtype = torch.float64 if key.wide else torch.float32
        rooms.setdefault((params[key.position].device, dtype), []).append(key)
    flats: list[Tensor] = []
    parts: dict[BufferKey, Tensor] = {}
    for (device, dtype), inside in rooms.items():
        size = sum(key.elements for key in inside)
        spare = len(keys) if not flats else 0
        flat = torch.zeros(size + spare, dtype=dtype, device=device)
        pieces = torch.split(flat[:size], [key.elements for key in inside])
        parts.update(zip(inside, pieces, strict=True))
        flats.append(flat)
    return flats, parts
