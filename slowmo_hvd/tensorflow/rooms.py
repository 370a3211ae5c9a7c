"""Variables as flat numbers, and what the variables in one flat tensor have in common."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from slowmo_hvd.core.buckets import Piece
from slowmo_hvd.tensorflow.native import native


def slow_dtype(variable: Any) -> str:
    """float64 for float64 variables, and float32 for all others, including half precision."""
    return "float64" if native(variable).dtype == tf.float64 else "float32"


class Room(NamedTuple):
    """What the variables in one flat tensor have in common."""

    dtype: str
    wire: str  #: the dtype on the wire and of the slow state

    @property
    def itemsize(self) -> int:
        """The number of bytes of an element on the wire."""
        return int(tf.as_dtype(self.wire).size)


def room_of(variable: Any) -> Room:
    """A variable's room."""
    return Room(native(variable).dtype.name, slow_dtype(variable))


@dataclasses.dataclass
class Wire:
    """What travels. TensorFlow's tensors cannot be written to, so a wire is given one."""

    room: Room
    size: int
    values: Any = None


def read(variable: Any, piece: Piece) -> Any:
    """A slice of a tf.Variable's elements, flat."""
    value = tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)
    flat = reshaped(value, (-1,))
    whole = piece.start == 0 and piece.stop == variable.shape.num_elements()
    return flat if whole else flat[piece.start : piece.stop]


class SlowVariable(NamedTuple):
    """One variable of the model, and where its slow state is."""

    variable: Any  #: as the optimizer got it, a Keras variable or a tf.Variable
    group: int  #: the number of its learning rate
    room: Room
    place: slice  #: its place in the room

    @property
    def shape(self) -> tuple[int, ...]:
        """The variable's shape."""
        return tuple(self.variable.shape)


def constraint_of(slot: SlowVariable) -> Callable[[Any], Any] | None:
    """The variable's constraint, if it has one."""
    found: Callable[[Any], Any] | None = getattr(slot.variable, "constraint", None)
    return found


# These use the operations themselves, which Python starts in a few µs. `tf.reshape` and similar
# functions take ten times as long, and each is called for every variable.


def cast(value: Any, dtype: Any) -> Any:
    """The tensor in this dtype."""
    return value if value.dtype == dtype else tf.cast(value, dtype)


def reshaped(value: Any, shape: tuple[int, ...]) -> Any:
    """The tensor in this shape."""
    return tf.raw_ops.Reshape(tensor=value, shape=_as_tensor(shape))


def flat_tensor(value: Any, dtype: str) -> Any:
    """Anything that NumPy accepts as an array, as a flat tensor."""
    return tf.constant(np.asarray(value).reshape(-1), dtype)


@functools.lru_cache(maxsize=1000)
def _as_tensor(shape: tuple[int, ...]) -> Any:
    with tf.init_scope():
        return tf.constant(shape, tf.int32)
