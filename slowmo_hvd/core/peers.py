"""What the ranks do together before they train: they agree, and all take one start."""

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from slowmo_hvd.core.agreement import Figures, agree
from slowmo_hvd.core.buckets import Bucket
from slowmo_hvd.core.engine import Engine
from slowmo_hvd.core.pipeline import send
from slowmo_hvd.core.transport import Transport

_peers: weakref.WeakSet["Peer"] = weakref.WeakSet()  # that live in this process


class Peer:
    """One optimizer of this process, with the number that the ranks have given it."""

    def __init__(self) -> None:
        self._serial: int | None = None
        _peers.add(self)

    def __reduce__(self) -> tuple[type["Peer"], tuple[()]]:
        """For deepcopy and pickle: a copy has no number yet."""
        return Peer, ()

    def agree(self, engine: Engine, figures: Figures) -> int:
        """Compare what must be equal, and name the engine's collectives; return the root.

        A collective.

        Raises:
            ValueError: the ranks differ; the same error on every rank.
            RuntimeError: as in `slowmo_hvd.core.names.agreed_serial`.
        """
        transport = engine.transport
        family = f"slowmo.{transport.process_set.process_set_id}"

        def others() -> list[int | None]:
            return [peer._serial for peer in _peers if peer is not self]

        gather = partial(transport.gather, name=f"{family}.figures")
        with transport.critical.alike():
            root, self._serial = agree(figures, gather, self._serial, others)
        engine.name, engine.named_by = f"{family}.{self._serial}", self
        return root


class Anchors(Protocol):
    """The anchors of the trained parameters, bucket by bucket."""

    @property
    def buckets(self) -> Sequence[Bucket]:
        """All buckets, the same on every rank."""

    def anchor(self, bucket: Bucket, out: Any) -> None:
        """Write x_{t,0} of a bucket into memory that travels."""

    def nothing(self, out: Any) -> None:
        """Write zeros into memory that travels."""

    def set_anchor(self, bucket: Bucket, values: Any) -> float:
        """Set a bucket's anchors; return the largest difference, NaN if there is one."""


def take_anchor(slow: Anchors, transport: Transport, name: str, *, mine: bool) -> list[float]:
    """Give all ranks the root's anchors. A collective.

    Args:
        slow: holds this rank's anchors.
        transport: how to send.
        name: the name of the collectives, which nothing else uses.
        mine: whether this rank is the root.

    Returns:
        How far this rank's anchors were from the root's, for each bucket.
    """
    gaps: list[float] = []
    loads = [_Anchor(slow, i, bucket, gaps, mine=mine) for i, bucket in enumerate(slow.buckets)]
    send(loads, transport, name)
    return gaps


class _Anchor:
    """A bucket of anchors: the root's values, and zeros from all other ranks."""

    exact = True

    def __init__(
        self, slow: Anchors, index: int, bucket: Bucket, gaps: list[float], *, mine: bool
    ) -> None:
        self.name = f"bucket{index}"
        self.room, self.size = bucket.room, bucket.size
        self._slow, self._bucket, self._gaps, self._mine = slow, bucket, gaps, mine

    def pack(self, wire: Any) -> None:
        if self._mine:
            self._slow.anchor(self._bucket, wire)
        else:
            self._slow.nothing(wire)

    def land(self, total: Any) -> None:
        self._gaps.append(self._slow.set_anchor(self._bucket, total))
