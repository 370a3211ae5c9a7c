"""Parameters as flat numbers, and what the parameters in one flat tensor have in common."""

from typing import NamedTuple

import torch
from torch import Tensor


def real(tensor: Tensor) -> Tensor:
    """``tensor`` without its graph, and if it is complex as pairs of reals: what is averaged."""
    detached = tensor.detach()
    return torch.view_as_real(detached) if detached.is_complex() else detached


def slow_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 parameters, and float32 for all others, including half precision."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def read(tensor: Tensor, inside: slice) -> Tensor:
    """A slice of a tensor's elements, flat. It is a view, unless the tensor's memory has gaps."""
    return tensor.reshape(-1)[inside]


def write(tensor: Tensor, inside: slice, values: Tensor) -> None:
    """Write flat values into a slice of a tensor's elements."""
    flat = tensor.reshape(-1)
    flat[inside].copy_(values)
    if flat.data_ptr() != tensor.data_ptr():  # a copy
        tensor.copy_(flat.view(tensor.shape))


class Room(NamedTuple):
    """What the tensors in one flat tensor have in common."""

    device: torch.device
    dtype: torch.dtype  #: of the parameters; complex ones are pairs of real numbers
    wire: torch.dtype  #: on the wire, and of the slow state

    @property
    def itemsize(self) -> int:
        """The number of bytes of an element on the wire."""
        return self.wire.itemsize


def room_of(param: Tensor) -> Room:
    """A parameter's room."""
    dtype = real(param).dtype
    return Room(param.device, dtype, slow_dtype(dtype))
