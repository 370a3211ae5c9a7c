"""Broadcasts many tensors from one rank to all, as bytes, with small ones joined."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import horovod.torch as hvd
import torch
from torch import Tensor

from slowmo_hvd.torch.transport import wait

_CHUNK = 64 * 2**20  # bytes that travel in one collective
_LARGE = 2**20  # bytes of a tensor that travels well without being joined with others
_WIRES = 2  # one is filled or emptied while the other is under way


class Spec(NamedTuple):
    """What the other ranks must know about one of the root's tensors."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    device: str  #: the device type on which it travels, on every rank

    @property
    def bytes(self) -> int:
        """The tensor's size in bytes."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def spec_of(tensor: Tensor) -> Spec:
    """The spec of a tensor."""
    return Spec(tensor.dtype, tuple(tensor.shape), tensor.device.type)


def broadcast_tensors(
    tensors: Sequence[Tensor],
    specs: Sequence[Spec],
    root_rank: int,
    *,
    name: str,
    devices: Mapping[str, torch.device],
    process_set: Any,
) -> None:
    """Give the root's tensors to all ranks, in place. A collective.

    Large tensors travel in their own memory. For small ones, and for those on another device than
    the one where they travel, there are two chunks of memory.

    Args:
        tensors: of the same dtypes and shapes on every rank; contiguous, except on the root.
        specs: the specs of the root's tensors, equal on every rank.
        root_rank: the global rank that has them.
        name: the name of the collectives, which nothing else uses.
        devices: for each device type other than the CPU, the device on this rank where tensors of
            that type travel.
        process_set: the ranks that take part, including this one.
    """
    mine = hvd.rank() == root_rank
    raw = [bytes_of(tensor) for tensor in tensors]
    under_way: list[_Transfer] = []
    for index, (device, slices) in enumerate(_chunks(specs)):
        parts = [raw[number][bytes_] for number, bytes_ in slices]
        wires = [transfer for transfer in under_way if transfer.has_wire]
        if len(wires) == _WIRES:
            wires[0].finish(mine=mine)
            under_way.remove(wires[0])
        wire = _wire(parts, devices.get(device, torch.device(device)), filled=mine)
        handle = hvd.broadcast_async_(wire, root_rank, f"{name}.{index}", process_set)
        under_way.append(_Transfer(handle, wire, parts))
    for transfer in under_way:
        transfer.finish(mine=mine)


class _Transfer(NamedTuple):
    """A collective that is under way."""

    handle: int
    wire: Tensor
    parts: list[Tensor]

    @property
    def has_wire(self) -> bool:
        """Whether it travels in its own memory, separate from the tensors'."""
        return self.wire is not self.parts[0]

    def finish(self, *, mine: bool) -> None:
        """Wait for it, and put its bytes where they belong."""
        wait(self.handle)
        if self.has_wire and not mine:
            for part, place in _places(self.parts, self.wire):
                part.copy_(place)


def bytes_of(tensor: Tensor) -> Tensor:
    """A tensor as flat uint8; the tensor's own memory if it is contiguous.

    Horovod supports neither bfloat16 nor complex numbers.
    """
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def _chunks(specs: Sequence[Spec]) -> Iterator[tuple[str, list[tuple[int, slice]]]]:
    """What travels at once, as slices of numbered tensors, and its device type.

    It depends only on the specs, so it is equal on every rank.
    """
    small: dict[str, list[tuple[int, slice]]] = {}
    room: dict[str, int] = {}
    for number, spec in enumerate(specs):
        if spec.bytes >= _LARGE:
            for begin in range(0, spec.bytes, _CHUNK):
                yield spec.device, [(number, slice(begin, min(begin + _CHUNK, spec.bytes)))]
        elif spec.bytes:
            if room.get(spec.device, 0) < spec.bytes:
                if spec.device in small:
                    yield spec.device, small[spec.device]
                small[spec.device], room[spec.device] = [], _CHUNK
            small[spec.device].append((number, slice(0, spec.bytes)))
            room[spec.device] -= spec.bytes
    yield from small.items()


def _wire(parts: list[Tensor], device: torch.device, *, filled: bool) -> Tensor:
    """The parts end to end. A single part that is on the device already stays in its own memory."""
    if len(parts) == 1 and parts[0].device == device:
        return parts[0]
    wire = torch.empty(sum(map(len, parts)), dtype=torch.uint8, device=device)
    if filled:
        for part, place in _places(parts, wire):
            place.copy_(part)
    return wire


def _places(parts: list[Tensor], wire: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(parts, torch.split(wire, list(map(len, parts))), strict=True)
