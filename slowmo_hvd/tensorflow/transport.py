"""The collectives of SlowMo in TensorFlow: only sums over the workers.

Every rank calls these in the same order with the same names and sizes, because the engine's calls
depend only on the schedule and on what the ranks agreed on. A sum is also the only collective that
Horovod still carries out after a rank has called ``hvd.join()``: such a rank adds zeros.

All of this is eager Python. Horovod identifies a tensor by the name of its node in a graph, without
the scopes around it, and eager operations have no name. So each sum is its own small graph, made
once. It runs in a thread, because TensorFlow returns only once it is over.
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf
from horovod.common.exceptions import HorovodInternalError

from slowmo_hvd.core.critical_section import CriticalSections
from slowmo_hvd.core.flight import UnderWay
from slowmo_hvd.core.stall import StallWatch
from slowmo_hvd.core.transport import Sealed
from slowmo_hvd.core.transport import Transport as CoreTransport
from slowmo_hvd.tensorflow.rooms import Room, Wire

stall_watch = StallWatch(hvd.rank, hvd.shutdown, HorovodInternalError)  #: of this process
critical = CriticalSections(  #: of this process
    hvd.rank,
    HorovodInternalError,
    # The errors that a graph raises for Horovod's.
    tf.errors.AbortedError,
    tf.errors.FailedPreconditionError,
    tf.errors.UnknownError,
)


class Transport(CoreTransport):
    """See `slowmo_hvd.core.transport`. A wire holds a tensor, because tensors cannot be written to.

    Args:
        process_set: the ranks that take part, including this one.
        compression: a Horovod compressor, or None.
        device: the device on which to sum; with "" Horovod chooses.
    """

    critical = critical
    stall_watch = stall_watch
    wires = 2  # a sum does not share memory with its terms

    def __init__(self, process_set: Any, compression: Any = None, device: str = "") -> None:
        super().__init__(process_set, compression)
        self._device = device
        self._sums: dict[Any, Callable[[Any], Any]] = {}

    def memory(self, room: Room, size: int, slot: int) -> Wire:
        """An empty wire."""
        return Wire(room, size)

    def start_numbers(self, numbers: Sequence[float], name: str) -> Any:
        """Start the sum of plain numbers."""
        if self.alone or not numbers:
            return list(numbers)
        with tf.device("CPU"):
            return self._start(tf.constant(numbers, tf.float64), name)

    def range(self, name: str) -> contextlib.AbstractContextManager[Any]:
        """A range of TensorFlow's profiler."""
        made: contextlib.AbstractContextManager[Any] = tf.profiler.experimental.Trace(name)
        return made

    def in_background(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """The call as it is."""
        return call

    def _finish_numbers(self, started: Any) -> list[float]:
        """Wait for that sum."""
        if isinstance(started, list):
            return started
        numbers: list[float] = started.result().numpy().tolist()
        return numbers

    def _largest(self, wire: Wire) -> float:
        return float(tf.reduce_max(tf.abs(wire.values)))

    def _send(self, sealed: Sealed) -> None:
        values, sealed.wire.values = sealed.wire.values, None
        if sealed.compressed:
            values, sealed.context = self.compression.compress(values * sealed.scale)
        sealed.handle = self._start(values, sealed.name)

    def _receive(self, sealed: Sealed) -> None:
        total, sealed.handle = sealed.handle.result(), None
        if sealed.compressed:
            total = self.compression.decompress(total, sealed.context) / sealed.scale
        sealed.wire.values = total

    def _start(self, tensor: Any, name: str) -> UnderWay:
        self.sent += tensor.shape.num_elements() * tensor.dtype.size
        key = name, tensor.dtype
        if key not in self._sums:
            collective = partial(_sum, name=name, process_set=self.process_set, device=self._device)
            self._sums[key] = run_once(collective, tf.TensorSpec([None], tensor.dtype))
        return UnderWay(partial(self._sums[key], tensor), "sum")


def run_once(collective: Callable[[Any], Any], spec: Any) -> Callable[[Any], Any]:
    """The collective as its own graph, because only in a graph an operation has a name.

    The ``tf.function`` itself is not called: from its fifth call on it would warn about tracing.
    """
    made: Callable[[Any], Any] = tf.function(collective, autograph=False).get_concrete_function(
        spec
    )
    return made


def _sum(tensor: Any, name: str, process_set: Any, device: str) -> Any:
    # Horovod's elastic.run recovers from an error if the error names this operation.
    return hvd.allreduce(
        tensor,
        device_dense=device,
        op=hvd.Sum,
        name=f"HorovodAllreduce.{name}",
        process_set=process_set,
        ignore_name_scope=True,
    )
