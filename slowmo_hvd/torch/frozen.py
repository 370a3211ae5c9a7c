"""Parameters that are not trained: once all ranks hold the same, nothing of them is sent."""

import zlib
from collections.abc import Iterator, Sequence

import horovod.torch as hvd
import torch
from torch import Tensor

from slowmo_hvd.core.buckets import Bucket, Leaf, plan
from slowmo_hvd.core.pipeline import send
from slowmo_hvd.torch.broadcasting import bytes_of
from slowmo_hvd.torch.rooms import Room, read, real, write
from slowmo_hvd.torch.transport import Transport

_WORD = Room(torch.device("cpu"), torch.uint8, torch.int64)


def take_roots(
    params: Sequence[Tensor], root: int, transport: Transport, name: str, bucket_bytes: int
) -> float:
    """Give all ranks the root's values, if any rank's checksum differs. A collective.

    Args:
        params: dense tensors of any dtype, equal on every rank except for their values.
        root: the global rank whose values all ranks take.
        transport: how to send.
        name: the name of the collectives, which nothing else uses.
        bucket_bytes: the largest size of a bucket.

    Returns:
        The largest difference of a number from the root's.
    """
    checksum = 0
    for param in params:
        checksum = zlib.crc32(bytes_of(param.cpu()).numpy(), checksum)  # type: ignore[arg-type]
    by_rank = transport.gather([checksum], f"{name}.checksum")
    if all(row == by_rank[root] for row in by_rank.values()):  # from a sum, so equal on every rank
        return 0.0
    numbers = list(map(real, params))
    leaves = {
        index: Leaf(-(-number.nbytes // _WORD.itemsize), _WORD, 0)
        for index, number in enumerate(numbers)
    }
    gaps = [0.0]
    loads = [
        _Roots(f"bucket{index}", bucket, numbers, gaps, mine=hvd.rank() == root)
        for index, bucket in enumerate(plan(leaves, leaves, bucket_bytes).buckets)
    ]
    send(loads, transport, name)
    return max(gaps)


class _Roots:
    """A bucket of these tensors as integers, whatever the dtype; only the root's are not 0."""

    exact = True

    def __init__(
        self,
        name: str,
        bucket: Bucket,
        numbers: Sequence[Tensor],
        gaps: list[float],
        *,
        mine: bool,
    ) -> None:
        self.name, self.room, self.size = name, bucket.room, bucket.size
        self._bucket, self._numbers, self._gaps, self._mine = bucket, numbers, gaps, mine

    def _parts(self, wire: Tensor) -> Iterator[tuple[Tensor, slice, Tensor]]:
        """For each piece: the tensor, the slice of its elements, and its bytes on the wire."""
        raw, word = wire.view(torch.uint8), wire.itemsize
        for leaf, start, stop, offset in self._bucket.pieces:
            numbers = self._numbers[leaf]
            many = word // numbers.itemsize
            inside = slice(start * many, min(stop * many, numbers.numel()))
            size = (inside.stop - inside.start) * numbers.itemsize
            yield numbers, inside, raw[offset * word : offset * word + size]

    def pack(self, wire: Tensor) -> None:
        wire.zero_()
        for numbers, inside, part in self._parts(wire) if self._mine else ():
            part.copy_(bytes_of(read(numbers, inside).cpu()))

    def land(self, total: Tensor) -> None:
        for numbers, inside, part in self._parts(total):
            roots = part.clone().view(numbers.dtype)  # aligned for the dtype
            gap = read(numbers, inside).cpu().double() - roots.double()
            self._gaps.append(gap.abs().max().item())
            write(numbers, inside, roots.to(numbers.device))
