"""The collectives of SlowMo: sums over the workers, and nothing else.

Every rank calls these in the same order with the same names and sizes, because the engine calls
them by the schedule and what the ranks agreed on alone. A sum is also the one collective that
Horovod still carries out after a rank has called ``hvd.join()``: such a rank adds zeros.

All of this is eager Python. Horovod knows a tensor by the name of its node in a graph, without the
scopes around it, and eager operations have none; so each sum is a small graph of its own, made
once. It runs in a thread of its own, since TensorFlow returns only once it is over.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf
from horovod.common.exceptions import HorovodInternalError

from slowmo_hvd.core.critical_section import CriticalSections
from slowmo_hvd.core.stall import StallWatch
from slowmo_hvd.tensorflow.tensors import Room, Wire

stall_watch = StallWatch(hvd.rank, hvd.shutdown, HorovodInternalError)  #: of this process
critical = CriticalSections(  #: likewise
    hvd.rank,
    HorovodInternalError,
    # What a graph makes of Horovod's errors.
    tf.errors.AbortedError,
    tf.errors.FailedPreconditionError,
    tf.errors.UnknownError,
)
_LARGEST_POWER = 100  # of two, by which displacements are scaled for half precision


@dataclasses.dataclass
class Sealed:
    """A wire that is ready to be sent, or under way.

    Attributes:
        wire: what was packed.
        name: the collective's name.
        peak: with a compression, the sum of the workers' largest elements, under way.
        scale: with a compression, what the wire was multiplied by.
        context: with a compression, the compressor's.
        total: the sum, under way.
    """

    wire: Wire
    name: str
    peak: "Future[Any] | None" = None
    scale: float = 1.0
    context: Any = None
    total: "Future[Any] | None" = None


class Transport:
    """Sums of flat tensors over one process set.

    With a compression a tensor is scaled to what half precision can hold. Displacements are
    smaller than gradients by the learning rate, and would vanish below 6e-8. So the workers first
    add up their largest elements: no element of the sum is larger than that, and a power of two
    that brings it near 2**15 is exact and equal everywhere.

    Args:
        process_set: the ranks that take part, this one among them.
        compression: a Horovod compressor; the same on every rank, which decides what is sent.
        device: where to sum, or "" where Horovod thinks best.
    """

    critical = critical
    stall_watch = stall_watch

    def __init__(self, process_set: Any, compression: Any, device: str) -> None:
        self.process_set = process_set
        self.compression = compression
        self.device = device
        self.sent = 0
        self._sums: dict[Any, Callable[[Any], Any]] = {}
        # Its own, since only of one optimizer the ranks wait for all sums in one order. Two, so
        # that numbers can travel beside a bucket.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="slowmo_hvd sums")

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

    def memory(self, room: Room, size: int, slot: int) -> Wire:
        """An empty wire: TensorFlow's tensors cannot be written to, so it takes one."""
        return Wire(room, size)

    def seal(self, wire: Wire, name: str, *, exact: bool) -> Sealed:
        """Make a packed wire ready to be sent; ``exact``: uncompressed."""
        if exact or self.compression is hvd.Compression.none or self._alone:
            return Sealed(wire, name)
        peak = tf.cast(tf.reduce_max(tf.abs(wire.values)), tf.float64)[None]
        return Sealed(wire, name, peak=self._start(peak, f"{name}.peak"))

    def start(self, sealed: Sealed) -> None:
        """Begin the sum."""
        if self._alone:
            return
        values = sealed.wire.values
        if sealed.peak is not None:
            largest = float(sealed.peak.result()[0])
            usable = 0 < largest < math.inf  # a NaN is not
            power = min(math.floor(15 - math.log2(largest)), _LARGEST_POWER) if usable else 0
            sealed.scale = 2.0**power
            values, sealed.context = self.compression.compress(values * sealed.scale)
        sealed.wire.values = None
        sealed.total = self._start(values, sealed.name)

    def finish(self, sealed: Sealed) -> Wire:
        """Wait for the sum; return it, in the wire."""
        if sealed.total is not None:
            total = sealed.total.result()
            if sealed.peak is not None:
                total = self.compression.decompress(total, sealed.context) / sealed.scale
            sealed.wire.values, sealed.total = total, None
        return sealed.wire

    def start_numbers(self, numbers: Sequence[float], name: str) -> Any:
        """Begin the sum of plain numbers, exact to a float64 whatever the compression."""
        if self._alone or not numbers:
            return list(numbers)
        with tf.device("CPU"):
            return self._start(tf.constant(numbers, tf.float64), name)

    def finish_numbers(self, started: Any) -> list[float]:
        """Wait for it."""
        if isinstance(started, list):
            return started
        numbers: list[float] = started.result().numpy().tolist()
        return numbers

    def gather(self, numbers: Sequence[float], name: str) -> dict[int, list[float]]:
        """Every worker's numbers by its rank; ranks that have joined are left out.

        An allgather written as a sum of rows, so that it works after a ``hvd.join()`` too.
        """
        row, workers = [1.0, hvd.rank(), *numbers], self.workers
        rows = [0.0] * (len(row) * workers)
        begin = len(row) * self.place
        rows[begin : begin + len(row)] = row
        table = self.finish_numbers(self.start_numbers(rows, name))
        split = (table[at : at + len(row)] for at in range(0, len(table), len(row)))
        return {int(rank): row for present, rank, *row in split if present}

    def _start(self, tensor: Any, name: str) -> "Future[Any]":
        self.sent += tensor.shape.num_elements() * tensor.dtype.size
        key = name, tensor.dtype
        if key not in self._sums:
            collective = partial(_sum, name=name, process_set=self.process_set, device=self.device)
            spec = tf.TensorSpec([None], tensor.dtype)
            self._sums[key] = run_once(collective, spec)
        return self._threads.submit(self._sums[key], tensor)


def run_once(collective: Callable[[Any], Any], spec: Any) -> Callable[[Any], Any]:
    """The collective as a graph of its own, since only there an operation has a name.

    Not by calling the ``tf.function`` itself, which would warn about tracing from its fifth time.
    """
    made: Callable[[Any], Any] = tf.function(collective, autograph=False).get_concrete_function(
        spec
    )
    return made


def _sum(tensor: Any, name: str, process_set: Any, device: str) -> Any:
    # Horovod's elastic.run takes an error for one to recover from if it names its operation.
    return hvd.allreduce(
        tensor,
        device_dense=device,
        op=hvd.Sum,
        name=f"HorovodAllreduce.{name}",
        process_set=process_set,
        ignore_name_scope=True,
    )
