"""Sums of many variables in buckets that are not weights: the inner optimizer's or a model's."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import tensorflow as tf

from slowmo_hvd.core.buckets import Bucket, Leaf, plan
from slowmo_hvd.core.pipeline import Load, send
from slowmo_hvd.tensorflow.rooms import Room, Wire, read, room_of
from slowmo_hvd.tensorflow.transport import Transport


def sums(
    variables: Sequence[Any],
    given: Collection[int],
    land: Callable[[int, Any], None],
    bucket_bytes: int,
    *,
    wide: bool = False,
) -> Iterator[Load]:
    """The loads that sum variables over the workers, uncompressed.

    Args:
        variables: floating-point tf.Variables, the same on every rank in the same order.
        given: the positions of those that this worker adds; for the others it adds zeros.
        land: called with a position and its sum, which has the variable's shape.
        bucket_bytes: the largest size of a bucket.
        wide: whether to sum in float64 whatever the dtype.
    """
    leaves = {}
    for index, variable in enumerate(variables):
        room = Room("float64", "float64") if wide else room_of(variable)
        leaves[index] = Leaf(variable.shape.num_elements(), room, 0)
    arrived: dict[int, list[Any]] = {}

    def arrive(index: int, part: Any, *, last: bool) -> None:
        parts = arrived.setdefault(index, [])
        parts.append(part)
        if last:
            land(index, tf.reshape(tf.concat(arrived.pop(index), 0), variables[index].shape))

    buckets = plan(leaves, leaves, bucket_bytes).buckets
    for number, bucket in enumerate(buckets):
        yield _Sum(f"buffers.bucket{number}", bucket, variables, given, arrive)


class _Sum:
    """A bucket of these variables."""

    exact = True  # Adam divides by second moments, which half precision rounds to 0

    def __init__(
        self,
        name: str,
        bucket: Bucket,
        variables: Sequence[Any],
        given: Collection[int],
        arrive: Callable[..., None],
    ) -> None:
        self.name, self.room, self.size = name, bucket.room, bucket.size
        self._bucket, self._variables = bucket, variables
        self._given, self._arrive = given, arrive

    def pack(self, wire: Wire) -> None:
        parts = []
        for piece in self._bucket.pieces:
            if piece.leaf in self._given:
                values = read(self._variables[piece.leaf], piece)
                parts.append(tf.cast(values, wire.room.wire))
            else:
                parts.append(tf.zeros([piece.stop - piece.start], wire.room.wire))
        wire.values = tf.concat(parts, 0)

    def land(self, total: Wire) -> None:
        values, total.values = total.values, None
        for leaf, start, stop, offset in self._bucket.pieces:
            last = stop == self._variables[leaf].shape.num_elements()
            self._arrive(leaf, values[offset : offset + stop - start], last=last)


def average(variables: Sequence[Any], transport: Transport, name: str, bucket_bytes: int) -> None:
    """Set each of these variables to its mean over the workers where it is finite. A collective.

    The sum of equal float32 numbers, and its quotient, are exact in the float64 on the wire: values
    that agree keep every bit. A rank that has joined (``hvd.join()``) does not count.

    Args:
        variables: floating-point tf.Variables, the same on every rank in the same order.
        transport: how to send.
        name: the name of the collectives, which nothing else uses.
        bucket_bytes: the largest size of a bucket.
    """
    if not variables or transport.alone:  # equal on every rank
        return
    sound = [bool(tf.reduce_all(tf.math.is_finite(variable))) for variable in variables]
    counts = transport.sum_numbers(list(map(float, sound)), f"{name}.finite")

    def land(index: int, total: Any) -> None:
        if counts[index] > 0:  # the same on every rank
            variables[index].assign(tf.cast(total / counts[index], variables[index].dtype))

    given = {index for index, fine in enumerate(sound) if fine}
    send(sums(variables, given, land, bucket_bytes, wide=True), transport, name)
