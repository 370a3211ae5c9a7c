"""Sums over the workers of one process set: the part that is the same in every framework."""

import abc
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from slowmo_hvd.core.critical_section import CriticalSections
from slowmo_hvd.core.stall import StallWatch

#: Each of Horovod's modules takes over the process sets when it is imported, and knows no ranks
#: before its own ``init``. Every rank would then seem to be outside, and would train by itself.
ANOTHER_FRAMEWORK = (
    "Horovod's module for another framework was imported after this one's, and has taken over the "
    "process sets: import one of horovod.torch and horovod.tensorflow in a process, and one of "
    "slowmo_hvd's"
)
_LARGEST_POWER = 100  # of two, the largest by which displacements are scaled for half precision


@dataclasses.dataclass
class Sealed:
    """A wire that is ready to be sent, or under way.

    Attributes:
        wire: the memory that was packed.
        name: the collective's name.
        compressed: whether it travels compressed. Only then are the next three used.
        peak: the sum of the workers' largest elements, under way.
        scale: what the wire is multiplied by before it is sent.
        context: the compressor's context.
        handle: the adapter's handle of the sum that is under way.
    """

    wire: Any
    name: str
    compressed: bool = False
    peak: Any = None
    scale: float = 1.0
    context: Any = None
    handle: Any = None


class Transport(abc.ABC):
    """Sums of flat tensors, and of plain numbers.

    With a compression, a tensor is scaled to what half precision can hold. Displacements are
    smaller than gradients by a factor of the learning rate, and would vanish below 6e-8. So the
    workers first add up their largest elements. No element of the sum is larger than that. Then
    they multiply by the power of two that brings it near 2**15, which is exact and equal on every
    rank.

    Args:
        process_set: Horovod's process set; the ranks that take part, including this one.
        compression: a Horovod compressor, or None; the same on every rank, because it decides what
            is sent.
    """

    critical: CriticalSections  #: of this process
    stall_watch: StallWatch  #: of this process
    wires: int  #: how many buckets the pipeline may have in memory, 2 or more

    def __init__(self, process_set: Any, compression: Any = None) -> None:
        self.process_set = process_set
        self.compression = compression
        self._member_of: Any = None  # the process set's list of ranks when this one was in it
        self.sent = 0  #: bytes handed to allreduce so far
        self.waited = 0.0  #: seconds spent waiting for sums so far

    @property
    def member(self) -> bool:
        """Whether this rank is among those that take part.

        Raises:
            RuntimeError: it took part before, and Horovod no longer knows that.
        """
        ranks = self.process_set.ranks
        if self.process_set.included():
            self._member_of = ranks
            return True
        if ranks is not None and ranks is self._member_of:
            raise RuntimeError(ANOTHER_FRAMEWORK)
        return False

    @property
    def workers(self) -> int:
        """The number of workers."""
        return int(self.process_set.size())

    @property
    def place(self) -> int:
        """This worker's place among them, from 0."""
        return int(self.process_set.rank())

    @property
    def ranks(self) -> list[int]:
        """The global rank of each worker."""
        return list(self.process_set.ranks)

    @property
    def alone(self) -> bool:
        """Whether there is nobody to send to. Equal on every rank: there is only one."""
        return self.workers == 1

    def seal(self, wire: Any, name: str, *, exact: bool) -> Sealed:
        """Prepare a packed wire for sending under this name; ``exact`` means uncompressed."""
        if exact or self.compression is None or self.alone:
            return Sealed(wire, name)
        peak = self.start_numbers([self._largest(wire)], f"{name}.peak")
        return Sealed(wire, name, compressed=True, peak=peak)

    def start(self, sealed: Sealed) -> None:
        """Start the sum."""
        if self.alone:
            return
        if sealed.compressed:
            (peak,) = self.finish_numbers(sealed.peak)
            sealed.scale = scale_for(peak)
        self._send(sealed)

    def finish(self, sealed: Sealed) -> Any:
        """Wait for the sum, and return it in the wire's memory."""
        if not self.alone:
            with self._waiting():
                self._receive(sealed)
        return sealed.wire

    def finish_numbers(self, started: Any) -> list[float]:
        """Wait for the sum of plain numbers."""
        with self._waiting():
            return self._finish_numbers(started)

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.waited += time.perf_counter() - begin

    def gather(self, numbers: Sequence[float], name: str) -> dict[int, list[float]]:
        """Every worker's numbers by its rank; ranks that have joined are left out.

        It is an allgather written as a sum of rows, so that it also works after a ``hvd.join()``.
        """
        row = [1.0, self.ranks[self.place], *numbers]
        rows = [0.0] * (len(row) * self.workers)
        begin = len(row) * self.place
        rows[begin : begin + len(row)] = row
        table = self.sum_numbers(rows, name)
        split = (table[at : at + len(row)] for at in range(0, len(table), len(row)))
        return {int(rank): row for present, rank, *row in split if present}

    def sum_numbers(self, numbers: Sequence[float], name: str) -> list[float]:
        """The sum of plain numbers over the workers."""
        return self.finish_numbers(self.start_numbers(numbers, name))

    @abc.abstractmethod
    def memory(self, room: Any, size: int, slot: int) -> Any:
        """Memory of ``size`` elements, with any contents, for one of the slots below `wires`.

        Only one thread at a time uses it.
        """

    @abc.abstractmethod
    def start_numbers(self, numbers: Sequence[float], name: str) -> Any:
        """Start the sum of plain numbers, which is exact to a float64 with any compression."""

    @abc.abstractmethod
    def _finish_numbers(self, started: Any) -> list[float]:
        """Wait for that sum."""

    @abc.abstractmethod
    def range(self, name: str) -> contextlib.AbstractContextManager[Any]:
        """A range in the framework's profiler, for what is done in this thread."""

    @abc.abstractmethod
    def in_background(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """The call in a form that another thread can run: it computes as in this one, in order."""

    @abc.abstractmethod
    def _largest(self, wire: Any) -> float:
        """The largest absolute value of its elements."""

    @abc.abstractmethod
    def _send(self, sealed: Sealed) -> None:
        """Start the sum of the wire, which is scaled and compressed first if it is to be."""

    @abc.abstractmethod
    def _receive(self, sealed: Sealed) -> None:
        """Wait for it, and put it into the wire's memory, decompressed and scaled back."""


def scale_for(peak: float) -> float:
    """The power of two that brings numbers up to ``peak`` near 2**15; 1 if there are none."""
    if not 0 < peak < math.inf:  # also not true of a NaN
        return 1.0
    return float(2.0 ** min(math.floor(15 - math.log2(peak)), _LARGEST_POWER))
