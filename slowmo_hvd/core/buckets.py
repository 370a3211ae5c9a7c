"""Which part of which parameter travels in which bucket. Integers only, equal on every rank.

Parameters that can share a tensor, such as those of one device and dtype, lie end to end in one
room. The trained parameters are cut into buckets of a bounded size. So one bucket can be on the
wire while the next one is packed, and while the outer step is taken on the one before.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class Leaf(NamedTuple):
    """One parameter.

    Attributes:
        size: the number of elements.
        room: equal for parameters that can share a tensor; hashable, and its ``itemsize`` is the
            number of bytes of an element on the wire.
        group: the parameter group, which has a learning rate.
    """

    size: int
    room: Any
    group: int


class Piece(NamedTuple):
    """A slice of one parameter, in a bucket.

    Attributes:
        leaf: the parameter's position.
        start: where the slice begins in the parameter, in elements.
        stop: where it ends in the parameter.
        offset: where it begins in the bucket.
    """

    leaf: int
    start: int
    stop: int
    offset: int


class Run(NamedTuple):
    """Pieces of one parameter group that are neighbours both in their room and in a bucket.

    Attributes:
        group: their parameter group.
        start: where they begin in the room, in elements.
        stop: where they end in the room.
        offset: where they begin in the bucket.
    """

    group: int
    start: int
    stop: int
    offset: int


class Bucket(NamedTuple):
    """What travels in one collective.

    Attributes:
        room: the room of its parameters.
        size: the number of elements.
        pieces: the slices in it, end to end.
        runs: the same slices, joined by parameter group.
    """

    room: Any
    size: int
    pieces: tuple[Piece, ...]
    runs: tuple[Run, ...]

    @property
    def nbytes(self) -> int:
        """The number of bytes on the wire."""
        return int(self.size * self.room.itemsize)


class Plan(NamedTuple):
    """The rooms and buckets of one optimizer.

    Attributes:
        sizes: the number of elements of each room.
        places: where each parameter begins in its room, by position.
        fragments: the buckets of each fragment, in the order in which they travel.
    """

    sizes: dict[Any, int]
    places: dict[int, int]
    fragments: tuple[tuple[Bucket, ...], ...]

    @property
    def buckets(self) -> list[Bucket]:
        """The buckets of all fragments."""
        return [bucket for buckets in self.fragments for bucket in buckets]


def plan(
    leaves: Mapping[int, Leaf],
    trained: Collection[int],
    bucket_bytes: int,
    parts: Sequence[Sequence[int]] | None = None,
) -> Plan:
    """Give all parameters a place, and cut those that are trained into buckets.

    Args:
        leaves: the parameters by position.
        trained: the positions of those that travel; the others only have a place.
        bucket_bytes: the largest size of a bucket on the wire, or one element if that is larger.
        parts: the positions in each fragment; fragments travel at different times. If None, all are
            in one fragment. Positions that are not in ``leaves`` are left out.
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
    """The number of bytes of these buckets on the wire."""
    return sum(bucket.nbytes for bucket in buckets)


def share_out(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Divide things, in order, into ``parts`` parts of about equal size; return their indices.

    Each thing goes to the part that is smallest so far. So equal ones are dealt in turn, and where
    weights and biases alternate, the weights do not all come together.
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
