"""The collectives of SlowMo: sums over the workers, and nothing else.

Every rank calls these in the same order with the same names and sizes, because the optimizer
calls them by the schedule alone. A sum is also the one collective that Horovod still carries out
after a rank has called ``hvd.join()``: such a rank adds zeros.

Horovod knows a tensor by the name of its node in the graph, without the scopes around it; so all
of this runs in graphs, also when it is called eagerly, where nodes have no names of their own.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf
from horovod.common.exceptions import HorovodInternalError

from slowmo_hvd.core.critical_section import CriticalSections
from slowmo_hvd.core.stall import StallWatch

stall_watch = StallWatch(hvd.rank, hvd.shutdown, HorovodInternalError)  #: of this process
#: Likewise, around what Python drives. A sync is a graph, which Ctrl-C waits for anyway.
critical = CriticalSections(
    hvd.rank,
    HorovodInternalError,
    # What a graph makes of Horovod's errors.
    tf.errors.AbortedError,
    tf.errors.FailedPreconditionError,
    tf.errors.UnknownError,
)
_LARGEST_POWER = 100  # of two, by which displacements are scaled for half precision


def sum_(
    flats: Sequence[Any],
    tail: Any,
    *,
    name: str,
    compression: Any,
    process_set: Any,
    device: str,
    check: Callable[[Any], Any] = tf.identity,
) -> tuple[list[Any], Any, Any]:
    """Sum flat tensors over the process set, in a graph.

    The tensor that the tail travels in comes first. If a rank finds in the tail's sum that others
    will not send the rest, none of it is under way.

    Args:
        flats: float tensors of one dimension, of equal sizes on every rank.
        tail: a float64 tensor of one dimension, figures that must arrive unharmed. It travels at
            the end of the first flat tensor, and by itself and uncompressed with a compression.
        name: the collectives' name, in use for nothing else.
        compression: a Horovod compressor; the same on every rank, which decides what is sent.
        process_set: the ranks that take part, this one among them.
        device: where to sum, or "" where Horovod thinks best.
        check: given the tail's sum, makes the tensor for which the rest waits.

    Returns:
        The sums of the flat tensors, that of the tail, and the bytes handed to allreduce, an int64
        tensor: the tail may have a length that is known only when the graph runs.
    """
    if compression is not hvd.Compression.none:
        return _sum_compressed(flats, tail, name, compression, process_set, device, check)
    first, *others = flats
    joined = tf.concat([first, tf.cast(tail, first.dtype)], 0)
    size = first.shape[0]
    total = _sum(joined, f"{name}.0", process_set, device)
    tail_sum = tf.cast(total[size:], tf.float64)
    with tf.control_dependencies([check(tail_sum)]):
        sums = [
            _sum(wire, f"{name}.{index}", process_set, device)
            for index, wire in enumerate(others, 1)
        ]
    return [total[:size], *sums], tail_sum, _bytes([joined, *others])


def _sum_compressed(
    flats: Sequence[Any],
    tail: Any,
    name: str,
    compression: Any,
    process_set: Any,
    device: str,
    check: Callable[[Any], Any],
) -> tuple[list[Any], Any, Any]:
    """As `sum_`, with the tensors scaled to what half precision can hold.

    Displacements are smaller than gradients by the learning rate, and would vanish below 6e-8.
    So the workers first add up their largest elements, beside the tail: no element of the sum is
    larger than that, and a power of two that brings it near 2**15 is exact and equal everywhere.
    """
    peaks = [tf.reduce_max(tf.abs(flat)) for flat in flats if flat.shape[0]]
    peak = tf.reduce_max(tf.stack([tf.cast(value, tf.float64) for value in peaks]))
    figures = tf.concat([tail, peak[None]], 0)
    wires = [figures]
    figures = _sum(figures, f"{name}.tail", process_set, device)
    peak = figures[-1]
    usable = tf.math.is_finite(peak) & (peak > 0)
    power = tf.floor(15 - tf.math.log(tf.where(usable, peak, 1.0)) / math.log(2))
    scale = tf.where(usable, 2.0 ** tf.minimum(power, _LARGEST_POWER), 1.0)
    sums = []
    checked = check(figures[:-1])
    for index, flat in enumerate(flats):
        wire, context = compression.compress(flat * tf.cast(scale, flat.dtype))
        wires.append(wire)
        with tf.control_dependencies([checked]):
            total = _sum(wire, f"{name}.{index}", process_set, device)
        sums.append(compression.decompress(total, context) / tf.cast(scale, flat.dtype))
    return sums, figures[:-1], _bytes(wires)


def sum_now(tensor: Any, *, name: str, process_set: Any) -> Any:
    """The eager tensor's sum over the process set."""
    return run_now(lambda value: _sum(value, name, process_set, ""), tensor)


def average_now(variables: Sequence[Any], *, name: str, process_set: Any) -> int:
    """Make each of these float variables its mean over the workers where it is finite. Eager.

    The sum of equal float32 numbers, and its quotient, are exact in the float64 on the wire:
    values that agree keep every bit. A rank that has joined (``hvd.join()``) counts for nothing.

    Returns:
        The bytes handed to allreduce.
    """
    if not variables or process_set.size() == 1:  # equal on every rank
        return 0
    parts = [tf.reshape(tf.cast(variable, tf.float64), [-1]) for variable in variables]
    sound = [tf.reduce_all(tf.math.is_finite(part)) for part in parts]
    parts = [tf.where(fine, part, 0.0) for fine, part in zip(sound, parts, strict=True)]
    wire = tf.concat([*parts, tf.cast(tf.stack(sound), tf.float64)], 0)  # and who counts where
    total = sum_now(wire, name=name, process_set=process_set)
    sizes = [variable.shape.num_elements() for variable in variables]
    *sums, counts = tf.split(total, [*sizes, len(sizes)])
    for variable, part, count in zip(variables, sums, tf.unstack(counts), strict=True):
        if count > 0:  # the same on every rank
            mean = tf.reshape(part / count, variable.shape)
            variable.assign(tf.cast(mean, variable.dtype))
    return int(_bytes([wire]))


def gather_figures(
    figures: Sequence[float], *, name: str, process_set: Any
) -> dict[int, list[float]]:
    """Every worker's figures by its rank; ranks that have joined are left out.

    An allgather written as a sum of float64 rows, so that it works after a ``hvd.join()`` too,
    and carries plain numbers.
    """
    rows = [[0.0] * (2 + len(figures)) for _ in range(process_set.size())]
    rows[process_set.rank()] = [1.0, hvd.rank(), *figures]
    table = sum_now(tf.constant(rows, tf.float64), name=name, process_set=process_set)
    return {int(rank): row for present, rank, *row in table.numpy().tolist() if present}


def run_now(collective: Callable[[Any], Any], tensor: Any) -> Any:
    """The collective in a graph of its own, since only there an operation has a name.

    Not by calling the ``tf.function`` itself, which would warn about tracing from its fifth time.
    """
    return tf.function(collective, autograph=False).get_concrete_function(tensor)(tensor)


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


def _bytes(wires: Sequence[Any]) -> Any:
    return tf.add_n([tf.size(wire, tf.int64) * wire.dtype.size for wire in wires])
