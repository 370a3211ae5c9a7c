"""Parameters as flat numbers, and what those that lie in one flat tensor have in common."""

from typing import NamedTuple

import torch
from torch import Tensor


def real(tensor: Tensor) -> Tensor:
    """``tensor`` without its graph, a complex one as pairs of real numbers: what is averaged."""
    detached = tensor.detach()
    return torch.view_as_real(detached) if detached.is_complex() else detached


def slow_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 parameters, float32 for all others, half precision included."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def read(tensor: Tensor, inside: slice) -> Tensor:
    """A slice of a tensor's elements, flat; a view, unless its memory has gaps."""
    return tensor.reshape(-1)[inside]


def write(tensor: Tensor, inside: slice, values: Tensor) -> None:
    """Put flat values there."""
    flat = tensor.reshape(-1)
    flat[inside].copy_(values)
    if flat.data_ptr() != tensor.data_ptr():  # a copy
        tensor.copy_(flat.view(tensor.shape))


class Room(NamedTuple):
    """What the tensors in one flat tensor have in common."""

    device: torch.device
    dtype: torch.dtype  #: of the parameters, complex ones as pairs of real numbers
    wire: torch.dtype  #: on the wire, and of the slow state

    @property
    def itemsize(self) -> int:
        """Bytes of an element on the wire."""
        return self.wire.itemsize


def room_of(param: Tensor) -> Room:
    """A parameter's."""
    dtype = real(param).dtype
    return Room(param.device, dtype, slow_dtype(dtype))
