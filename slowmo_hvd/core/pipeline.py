"""Sums over the workers, bucket by bucket: one is on the wire while others are worked on."""

from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

from slowmo_hvd.core.transport import Sealed, Transport


class Load(Protocol):
    """What one bucket contains, and what happens to its sum.

    Attributes:
        name: unique among the loads, and the same on every rank.
        room: a device and a dtype; loads in the same room can share memory.
        size: the number of elements.
        exact: whether it must not be compressed.
    """

    name: str
    room: Any
    size: int
    exact: bool

    def pack(self, wire: Any) -> None:
        """Write what this worker adds into the memory that travels."""

    def land(self, total: Any) -> None:
        """Take the sum over the workers, which is in the same memory."""


def send(loads: Iterable[Load], transport: Transport, name: str) -> None:
    """Sum and land all loads, in order.

    A collective. While one load is on the wire, the one before it lands, and the next one is packed
    in the memory that this frees. So two wires are enough for a model of any size. With three
    wires, another load waits for its turn, and the wire is never idle. The loads are asked for one
    by one, and each is packed before the next one is asked for.

    Args:
        loads: the same on every rank, in the same order.
        transport: how to send.
        name: the name of the collectives, which nothing else uses; each load's own name follows.
    """
    flying: deque[tuple[Load, Sealed]] = deque()
    for index, load in enumerate(loads):
        wire = transport.memory(load.room, load.size, index % transport.wires)
        with transport.range(f"slowmo.pack.{load.name}"):
            load.pack(wire)
        sealed = transport.seal(wire, f"{name}.{load.name}", exact=load.exact)
        if len(flying) < transport.wires - 1:
            transport.start(sealed)
        else:
            earlier, total = _finish(*flying.popleft(), transport)
            if flying:  # on the wire; Horovod would copy two waiting ones into one buffer
                _land(earlier, total, transport)
                transport.start(sealed)
            else:
                transport.start(sealed)
                _land(earlier, total, transport)
        flying.append((load, sealed))
    for load, sealed in flying:
        _land(*_finish(load, sealed, transport), transport)


def _finish(load: Load, on_the_wire: Sealed, transport: Transport) -> tuple[Load, Any]:
    with transport.range(f"slowmo.wait.{load.name}"):
        return load, transport.finish(on_the_wire)


def _land(load: Load, total: Any, transport: Transport) -> None:
    with transport.range(f"slowmo.land.{load.name}"):
        load.land(total)
