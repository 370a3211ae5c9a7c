"""Many tensors from one rank to all, as bytes: a collective for 64 MiB, not for each tensor."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import horovod.torch as hvd
import torch
from torch import Tensor

from slowmo_hvd.torch.exchange import wait

_CHUNK = 64 * 2**20  # bytes that travel at once
_AT_ONCE = 2  # chunks, one of which is filled or emptied while the other is on its way


class Spec(NamedTuple):
    """What the other ranks must know of one of the root's tensors."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    device: str  #: its type, where it travels on every rank

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class _Part(NamedTuple):
    """Some bytes of one tensor."""

    tensor: int
    begin: int
    end: int


def spec_of(tensor: Tensor) -> Spec:
    """The tensor's."""
    return Spec(tensor.dtype, tuple(tensor.shape), tensor.device.type)


def broadcast_tensors(
    tensors: Sequence[Tensor] | None,
    specs: Sequence[Spec],
    root_rank: int,
    *,
    name: str,
    devices: Mapping[str, torch.device],
    process_set: Any,
) -> list[Tensor]:
    """The root's tensors: themselves on the root, copies on the CPU elsewhere. A collective.

    Beside the copies, this takes the memory of two chunks; a tensor of more than a chunk travels
    from and to its own memory, if that is the CPU's.

    Args:
        tensors: on the root.
        specs: theirs, equal on every rank.
        root_rank: the global rank that has them.
        name: the collectives' name, in use for nothing else.
        devices: where on this rank tensors of a device type other than the CPU travel.
        process_set: the ranks that take part, this one among them.
    """
    mine = tensors is not None
    if tensors is None:
        tensors = [torch.empty(spec.shape, dtype=spec.dtype, device="cpu") for spec in specs]
    raw = [_bytes(tensor) for tensor in tensors]
    under_way: list[tuple[int, list[Tensor]]] = []
    for index, (device, chunk) in enumerate(_chunks(specs)):
        if len(under_way) == _AT_ONCE:
            _finish(*under_way.pop(0), mine=mine)
        parts = [raw[part.tensor][part.begin : part.end] for part in chunk]
        wire = _wire(parts, devices.get(device, torch.device(device)), filled=mine)
        handle = hvd.broadcast_async_(wire, root_rank, f"{name}.{index}", process_set)
        under_way.append((handle, parts))
    for handle, parts in under_way:
        _finish(handle, parts, mine=mine)
    return list(tensors)


def _bytes(tensor: Tensor) -> Tensor:
    # Horovod knows no bfloat16, nor the complex numbers; it knows bytes.
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def _chunks(specs: Sequence[Spec]) -> Iterator[tuple[str, list[_Part]]]:
    """What travels at once, and its device type: from the specs alone, so alike on every rank."""
    for device in sorted({spec.device for spec in specs}):
        chunk: list[_Part] = []
        room = _CHUNK
        for index, spec in enumerate(specs):
            begin = 0
            while spec.device == device and begin < spec.bytes:
                end = min(spec.bytes, begin + room)
                chunk.append(_Part(index, begin, end))
                room -= end - begin
                begin = end
                if not room:
                    yield device, chunk
                    chunk, room = [], _CHUNK
        if chunk:
            yield device, chunk


def _wire(parts: list[Tensor], device: torch.device, *, filled: bool) -> Tensor:
    """The parts end to end; one that is alone and where it travels from, in its own memory."""
    if len(parts) == 1 and parts[0].device == device:
        return parts[0]
    wire = torch.empty(sum(map(len, parts)), dtype=torch.uint8, device=device)
    if filled:
        for part, place in _places(parts, wire):
            place.copy_(part)
    return wire


def _places(parts: list[Tensor], wire: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(parts, torch.split(wire, list(map(len, parts))), strict=True)


def _finish(handle: int, parts: list[Tensor], *, mine: bool) -> None:
    wire = wait(handle)
    if not mine and wire.data_ptr() != parts[0].data_ptr():
        for part, place in _places(parts, wire):
            part.copy_(place)
