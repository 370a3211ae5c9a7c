"""The collectives of SlowMo: sums over the workers, and nothing else.

Every rank calls these in the same order with the same names and sizes, because the engine calls
them by the schedule and what the ranks agreed on alone. A sum is also the one collective that
Horovod still carries out after a rank has called ``hvd.join()``: such a rank adds zeros.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError
from torch import Tensor

from slowmo_hvd.core.critical_section import CriticalSections
from slowmo_hvd.core.stall import StallWatch
from slowmo_hvd.torch.tensors import Room

stall_watch = StallWatch(hvd.rank, hvd.shutdown, HorovodInternalError)  #: of this process
critical = CriticalSections(hvd.rank, HorovodInternalError)  #: likewise
_LARGEST_POWER = 100  # of two, by which displacements are scaled for half precision


@dataclasses.dataclass
class Sealed:
    """A wire that is ready to be sent, or under way.

    Attributes:
        wire: the memory that was packed.
        name: the collective's name.
        peak: with a compression, the sum of the workers' largest elements, under way.
        scale: with a compression, what the wire was multiplied by.
        context: with a compression, the compressor's.
        handle: Horovod's, once it is under way.
    """

    wire: Tensor
    name: str
    peak: int | None = None
    scale: float = 1.0
    context: Any = None
    handle: int | None = None


class Transport:
    """Sums of flat tensors over one process set.

    With a compression a tensor is scaled to what half precision can hold. Displacements are
    smaller than gradients by the learning rate, and would vanish below 6e-8. So the workers first
    add up their largest elements: no element of the sum is larger than that, and a power of two
    that brings it near 2**15 is exact and equal everywhere.

    Args:
        process_set: the ranks that take part, this one among them.
        compression: a Horovod compressor; the same on every rank, which decides what is sent.
    """

    critical = critical
    stall_watch = stall_watch

    def __init__(self, process_set: Any, compression: Any = hvd.Compression.none) -> None:
        self.process_set = process_set
        self.compression = compression
        self.sent = 0
        self._kept: dict[Any, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For deepcopy and pickle: the wires hold nothing between two syncs."""
        # Horovod compares the global process set by identity: a copy of it would be another set.
        everyone = self.process_set is hvd.global_process_set
        return {
            "process_set": None if everyone else self.process_set,
            "compression": self.compression,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        process_set = state["process_set"]
        self.__init__(  # type: ignore[misc]
            hvd.global_process_set if process_set is None else process_set, state["compression"]
        )

    @property
    def workers(self) -> int:
        """How many there are."""
        return int(self.process_set.size())

    @property
    def place(self) -> int:
        """This worker's, from 0."""
        return int(self.process_set.rank())

    @property
    def ranks(self) -> list[int]:
        """The global rank of each worker."""
        return list(self.process_set.ranks)

    @property
    def _alone(self) -> bool:  # equal on every rank: there is only one
        return self.workers == 1

    def memory(self, room: Room, size: int, slot: int) -> Tensor:
        """A wire with any contents.

        Kept from sync to sync on a CPU, where to map that much anew costs more than the
        arithmetic of a sync; a GPU has torch's caching allocator for that.
        """
        key = (room.device, room.wire), slot
        wire = self._kept.get(key)
        if wire is None or wire.numel() < size:
            self._kept.pop(key, None)
            del wire  # first free, then allocate
            wire = torch.empty(size, dtype=room.wire, device=room.device)
            if room.device.type == "cpu":
                self._kept[key] = wire
        return wire[:size]

    def seal(self, wire: Tensor, name: str, *, exact: bool) -> Sealed:
        """Make a packed wire ready to be sent; ``exact``: uncompressed."""
        if exact or self.compression is hvd.Compression.none or self._alone:
            return Sealed(wire, name)
        peak = wire.abs().max().double().cpu()
        return Sealed(wire, name, peak=self._start(peak, f"{name}.peak"))

    def start(self, sealed: Sealed) -> None:
        """Begin the sum."""
        if self._alone:
            return
        wire = sealed.wire
        if sealed.peak is not None:
            largest = wait(sealed.peak).item()
            usable = 0 < largest < math.inf  # a NaN is not
            power = min(math.floor(15 - math.log2(largest)), _LARGEST_POWER) if usable else 0
            sealed.scale = 2.0**power
            wire, sealed.context = self.compression.compress(wire.mul_(sealed.scale))
        sealed.handle = self._start(wire, sealed.name)

    def finish(self, sealed: Sealed) -> Tensor:
        """Wait for the sum; return it, in the wire's memory."""
        if sealed.handle is None:
            return sealed.wire
        total = wait(sealed.handle)
        if sealed.peak is not None:
            total = self.compression.decompress(total, sealed.context)
            torch.mul(total, 1 / sealed.scale, out=sealed.wire)
        return sealed.wire

    def start_numbers(self, numbers: Sequence[float], name: str) -> tuple[Tensor, int | None]:
        """Begin the sum of plain numbers, exact to a float64 whatever the compression."""
        row = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        return row, None if self._alone else self._start(row, name)

    def finish_numbers(self, started: tuple[Tensor, int | None]) -> list[float]:
        """Wait for it."""
        row, handle = started
        if handle is not None:
            wait(handle)
        numbers: list[float] = row.tolist()
        return numbers

    def gather(self, numbers: Sequence[float], name: str) -> dict[int, list[float]]:
        """Every worker's numbers by its rank; ranks that have joined are left out.

        An allgather written as a sum of rows, so that it works after a ``hvd.join()`` too.
        """
        row, workers = [1.0, hvd.rank(), *numbers], self.process_set.size()
        rows = [0.0] * (len(row) * workers)
        begin = len(row) * self.process_set.rank()
        rows[begin : begin + len(row)] = row
        table = self.finish_numbers(self.start_numbers(rows, name))
        split = (table[at : at + len(row)] for at in range(0, len(table), len(row)))
        return {int(rank): row for present, rank, *row in split if present}

    def _start(self, tensor: Tensor, name: str) -> int:
        self.sent += tensor.nbytes
        handle: int = hvd.allreduce_async_(
            tensor, name=name, op=hvd.Sum, process_set=self.process_set
        )
        return handle


def wait(handle: int) -> Tensor:
    """The finished collective's tensor.

    ``hvd.synchronize`` spins until then, on a core that this host's slower ranks and Horovod's
    own thread could use. The pauses grow with the wait, so they add a quarter to it at the most.
    """
    pause = 20e-6
    while not hvd.poll(handle):
        time.sleep(pause)
        pause = min(1.25 * pause, 1e-3)
    result: Tensor = hvd.synchronize(handle)
    return result
