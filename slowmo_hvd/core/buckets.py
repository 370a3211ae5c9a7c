"""Which part of which parameter travels in which bucket. Integers only, equal on every rank.

Parameters that can share a tensor, such as those of one device and dtype, lie end to end in one
room. What is trained is cut into buckets of a bounded size, so that one can be on the wire while
the next is packed and the one before goes through the outer step.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class Leaf(NamedTuple):
    """One parameter.

    Attributes:
        size: elements.
        room: equal for those that it can share a tensor with; hashable, and its ``itemsize`` is the
            bytes of an element on the wire.
        group: its parameter group, which has a learning rate.
    """

    size: int
    room: Any
    group: int


class Piece(NamedTuple):
    """A slice of one parameter, in a bucket.

    Attributes:
        leaf: the parameter's position.
        start: where in the parameter the slice begins, in elements.
        stop: where it ends.
        offset: where in the bucket it begins.
    """

    leaf: int
    start: int
    stop: int
    offset: int


class Run(NamedTuple):
    """Pieces of one parameter group that are neighbours in their room and in a bucket.

    Attributes:
        group: their parameter group.
        start: where in the room they begin, in elements.
        stop: where they end.
        offset: where in the bucket they begin.
    """

    group: int
    start: int
    stop: int
    offset: int


class Bucket(NamedTuple):
    """What travels in one collective.

    Attributes:
        room: where its parameters are.
        size: elements.
        pieces: the slices in it, end to end.
        runs: the same by parameter group.
    """

    room: Any
    size: int
    pieces: tuple[Piece, ...]
    runs: tuple[Run, ...]

    @property
    def nbytes(self) -> int:
        """On the wire."""
        return int(self.size * self.room.itemsize)


class Plan(NamedTuple):
    """All of one optimizer.

    Attributes:
        sizes: elements of each room.
        places: where each parameter begins in its room, by position.
        fragments: the buckets of each fragment, in the order in which they travel.
    """

    sizes: dict[Any, int]
    places: dict[int, int]
    fragments: tuple[tuple[Bucket, ...], ...]

    @property
    def buckets(self) -> list[Bucket]:
        """Those of all fragments."""
        return [bucket for buckets in self.fragments for bucket in buckets]


def plan(
    leaves: Mapping[int, Leaf],
    trained: Collection[int],
    bucket_bytes: int,
    parts: Sequence[Sequence[int]] | None = None,
) -> Plan:
    """Lay parameters out, and cut those that are trained into buckets.

    Args:
        leaves: the parameters by position.
        trained: the positions of those that travel; the others only have their place.
        bucket_bytes: of a bucket on the wire at the most; of one element where that is more.
        parts: the positions of each fragment, which travel at different times; all in one if None.
            One that is not among ``leaves`` is left out.
    """
    parts = [[p for p in part if p in leaves] for part in (parts or [list(leaves)])]
    places: dict[int, int] = {}
    sizes: dict[Any, int] = {}
    for position in (position for part in parts for position in part):
        leaf = leaves[position]
        places[position] = sizes.setdefault(leaf.room, 0)
        sizes[leaf.room] += leaf.size
    travelling = set(trained)
    cut = (
        _cut({p: leaves[p] for p in part if p in travelling}, places, bucket_bytes)
        for part in parts
    )
    return Plan(sizes, places, tuple(cut))


def total_bytes(buckets: Iterable[Bucket]) -> int:
    """Of these on the wire."""
    return sum(bucket.nbytes for bucket in buckets)


def share_out(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Deal things out to so many parts of about equal size, in order; return their indices.

    Each goes to the part with least in it so far. So equal ones go round, and of a layer's weight
    and bias not all weights come together.
    """
    shared: list[list[int]] = [[] for _ in range(parts)]
    filled = [0] * parts
    for index, size in enumerate(sizes):
        least = filled.index(min(filled))
        shared[least].append(index)
        filled[least] += size
    return shared


def _cut(
    leaves: Mapping[int, Leaf], places: Mapping[int, int], bucket_bytes: int
) -> tuple[Bucket, ...]:
    rooms: dict[Any, list[int]] = {}
    for position, leaf in leaves.items():
        if leaf.size:
            rooms.setdefault(leaf.room, []).append(position)
    buckets = []
    for room, positions in rooms.items():
        capacity = max(1, bucket_bytes // room.itemsize)
        pieces: list[Piece] = []
        filled = 0
        for position in positions:
            start, end = 0, leaves[position].size
            while start < end:
                stop = min(end, start + capacity - filled)
                pieces.append(Piece(position, start, stop, filled))
                filled += stop - start
                start = stop
                if filled == capacity:
                    buckets.append(_bucket(room, pieces, leaves, places))
                    pieces, filled = [], 0
        if pieces:
            buckets.append(_bucket(room, pieces, leaves, places))
    return tuple(buckets)


def _bucket(
    room: Any, pieces: Sequence[Piece], leaves: Mapping[int, Leaf], places: Mapping[int, int]
) -> Bucket:
    runs: list[Run] = []
    for leaf, begin, end, offset in pieces:
        start, stop, group = places[leaf] + begin, places[leaf] + end, leaves[leaf].group
        if runs and (runs[-1].group, runs[-1].stop) == (group, start):
            runs[-1] = runs[-1]._replace(stop=stop)
        else:
            runs.append(Run(group, start, stop, offset))
    last = pieces[-1]
    return Bucket(room, last.offset + last.stop - last.start, tuple(pieces), tuple(runs))
