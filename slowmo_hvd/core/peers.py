"""What the ranks do together before they train: all take one start."""

from collections.abc import Sequence
from typing import Any, Protocol

from slowmo_hvd.core.pipeline import send
from slowmo_hvd.core.plan import Bucket
from slowmo_hvd.core.transport import Transport


class Anchors(Protocol):
    """The anchors of what is trained, bucket by bucket."""

    @property
    def buckets(self) -> Sequence[Bucket]:
        """All of them, the same on every rank."""

    def anchor(self, bucket: Bucket, out: Any) -> None:
        """Write x_{t,0} of a bucket into memory that travels."""

    def nothing(self, out: Any) -> None:
        """Write zeros there."""

    def set_anchor(self, bucket: Bucket, values: Any) -> float:
        """Take these for a bucket's anchors; return the largest difference, NaN if there is one."""


def take_anchor(slow: Anchors, transport: Transport, name: str, *, mine: bool) -> list[float]:
    """Give all ranks the root's anchors. A collective.

    Args:
        slow: has this rank's.
        transport: how to send.
        name: the collectives' name, in use for nothing else.
        mine: whether this rank is the root.

    Returns:
        How far this rank's anchors were from the root's, for each bucket.
    """
    gaps: list[float] = []
    loads = [_Anchor(slow, bucket, gaps, mine=mine) for bucket in slow.buckets]
    send(loads, transport, name)
    return gaps


class _Anchor:
    """A bucket of them: the root's and, from all other ranks, zeros."""

    exact = True

    def __init__(self, slow: Anchors, bucket: Bucket, gaps: list[float], *, mine: bool) -> None:
        self.room, self.size = bucket.room, bucket.size
        self._slow, self._bucket, self._gaps, self._mine = slow, bucket, gaps, mine

    def pack(self, wire: Any) -> None:
        if self._mine:
            self._slow.anchor(self._bucket, wire)
        else:
            self._slow.nothing(wire)

    def land(self, total: Any) -> None:
        self._gaps.append(self._slow.set_anchor(self._bucket, total))
