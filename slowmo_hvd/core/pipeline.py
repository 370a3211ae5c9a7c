"""Sums over the workers, bucket by bucket: one is on the wire while others are worked on."""

from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

from slowmo_hvd.core.transport import Sealed, Transport


class Load(Protocol):
    """What one bucket brings, and what becomes of the sum.

    Attributes:
        name: of its own among the loads, the same on every rank.
        room: where it may have memory in common with others: a device and a dtype.
        size: elements.
        exact: whether it must not be compressed.
    """

    name: str
    room: Any
    size: int
    exact: bool

    def pack(self, wire: Any) -> None:
        """Write what this worker adds into the memory that travels."""

    def land(self, total: Any) -> None:
        """Take the sum over the workers, in the same memory."""


def send(loads: Iterable[Load], transport: Transport, name: str) -> None:
    """Have all loads summed and landed, in order.

    A collective. While one is on the wire, the one before it lands, and the next is packed in the
    memory that this leaves: there are two wires, whatever the model's size. With three, another
    waits for its turn on the wire, which then is never idle. The loads are asked for one by one,
    and each is packed before the next is asked for.

    Args:
        loads: the same on every rank, in the same order.
        transport: how to send.
        name: the collectives' name, in use for nothing else; each load's own follows.
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
            if flying:  # on the wire; two that wait for their turn Horovod would copy together
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
