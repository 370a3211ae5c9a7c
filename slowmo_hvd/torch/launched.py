"""x^i of one fragment as it was when its average was launched, while local steps go on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from slowmo_hvd.core.buckets import Bucket
from slowmo_hvd.core.outer import OuterStep
from slowmo_hvd.torch.arithmetic import OnWires, displacement, outer_step, zero
from slowmo_hvd.torch.rooms import Room


class Launched(OnWires):
    """See `slowmo_hvd.core.ports.Slow`: its outer steps change only anchor and momentum.

    Another thread can use it: nothing else touches its tensors before it has landed.

    Args:
        buckets: the fragment's buckets.
        anchors: x_{t,0} of each room.
        momenta: u_t of each room, if β > 0.
        memory: returns an empty flat tensor for a room, with at least this many elements.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        anchors: Mapping[Room, Tensor],
        momenta: Mapping[Room, Tensor],
        memory: Callable[[Room, int], Tensor],
    ) -> None:
        self.buckets = buckets
        self._anchors, self._momenta = anchors, momenta
        self._begins: dict[Room, int] = {}
        ends: dict[Room, int] = {}
        for bucket in buckets:  # of one fragment, end to end
            self._begins.setdefault(bucket.room, bucket.runs[0].start)
            ends[bucket.room] = bucket.runs[-1].stop
        sizes = {room: ends[room] - begin for room, begin in self._begins.items()}
        self.memory = {room: memory(room, size) for room, size in sizes.items()}
        self.flats = {room: self.memory[room][:size] for room, size in sizes.items()}

    def part(self, room: Room, start: int, stop: int) -> Tensor:
        """The numbers between two places of a room."""
        begin = self._begins[room]
        return self.flats[room][start - begin : stop - begin]

    def buckets_of(self, fragment: int) -> Sequence[Bucket]:
        """The buckets of its one fragment."""
        return self.buckets

    def squared_norm(self, buckets: Sequence[Bucket], memory: Callable[[Bucket], Any]) -> float:
        """‖x^i‖²; not finite if any parameter is not finite."""
        norms = [
            torch.linalg.vector_norm(flat, dtype=room.wire) for room, flat in self.flats.items()
        ]
        return float(sum(norm.double().item() ** 2 for norm in norms))

    def displacement(self, bucket: Bucket, out: Tensor) -> Tensor:
        """Write d^i of this worker at the launch; return its squared norm."""
        room, squares = bucket.room, zero(bucket.room)
        for _, start, stop, offset in bucket.runs:
            wire, anchor = out[offset : offset + stop - start], self._anchors[room][start:stop]
            squares += displacement(anchor, self.part(room, start, stop), wire, room)
        return squares

    def outer_step(
        self, bucket: Bucket, total: Tensor, workers: int, steps: Sequence[OuterStep]
    ) -> Tensor:
        """Take the outer step from the displacements' sum over ``workers``."""
        room, squares = bucket.room, zero(bucket.room)
        for group, start, stop, offset in bucket.runs:
            momentum = self._momenta[room][start:stop] if room in self._momenta else None
            anchor, sums = self._anchors[room][start:stop], total[offset : offset + stop - start]
            squares += outer_step(anchor, momentum, sums, workers, steps[group], room, None)
        return squares
