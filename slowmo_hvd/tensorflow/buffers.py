"""Line 2 of Algorithm 1: what a new window finds in the inner optimizer's buffers."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from slowmo_hvd.tensorflow.slow_model import native, slow_dtype

_ScheduleFree = getattr(keras.optimizers, "ScheduleFreeAdamW", ())


def resolve_strategy(strategy: str, leaf: keras.optimizers.Optimizer) -> str:
    """Choose "reset", "maintain" or "average" for this optimizer.

    "auto" resets for SGD and maintains for all others, as the paper does for SGD and Adam. It
    also resets ScheduleFreeAdamW: its buffer is a second set of weights, which would otherwise
    stay each worker's own for good.
    """
    if strategy == "auto":
        restarts = isinstance(leaf, (keras.optimizers.SGD, _ScheduleFree))
        return "reset" if restarts else "maintain"
    return strategy


class Buffers:
    """The buffers of one inner optimizer that updates variables, and what a window does to them.

    A buffer is any float variable of the optimizer's but its learning rate, its average of the
    weights (EMA) and the gradients it is adding up: these are no memory of a direction.
    """

    def __init__(
        self,
        leaf: keras.optimizers.Optimizer,
        strategy: str,
        add_variable: Callable[..., Any],
    ) -> None:
        """Look at a built optimizer that has taken no step.

        Args:
            leaf: the optimizer.
            strategy: "reset", "maintain" or "average".
            add_variable: the outer optimizer's, for the step count at the last reset.

        Raises:
            ValueError: "reset" for an optimizer whose buffers do not start from one number.
        """
        self.strategy = strategy
        self._leaf = leaf
        self._buffers = _buffers(leaf)
        self._copies: list[tuple[Any, Any]] = []  # buffer and the variable that it starts from
        self._fresh: list[tuple[Any, float]] = []  # buffer and the number that it starts from
        if strategy == "reset":
            self._learn_what_is_fresh()
            self._restarted_at = native(
                add_variable(shape=(), dtype="int64", name=f"{leaf.name}_restarted_at")
            )
            _count_from(leaf, self._restarted_at)

    def _learn_what_is_fresh(self) -> None:
        if isinstance(self._leaf, _ScheduleFree):
            pairs = zip(self._leaf._momentums, self._leaf._trainable_variables, strict=True)
            self._copies = [(native(z), native(x)) for z, x in pairs if z is not None]
        copied = {id(buffer) for buffer, _ in self._copies}
        for buffer in self._buffers:
            if id(buffer) in copied or not buffer.shape.num_elements():
                continue
            with tf.init_scope():
                low, high = float(tf.reduce_min(buffer)), float(tf.reduce_max(buffer))
            if low != high:
                raise ValueError(
                    f"buffers='reset' does not know what {buffer.name} of "
                    f"{type(self._leaf).__name__} is when it is new: it does not start from one "
                    "number, or has been used already; use 'maintain' or 'average', or wrap the "
                    "optimizer before its first step"
                )
            self._fresh.append((buffer, low))

    def reset(self) -> None:
        """Leave the optimizer as if it had taken no step, but for its learning-rate schedule.

        A step count that survived its moments would switch Adam's bias correction off; one that
        restarted for the schedule too would rewind that.
        """
        for buffer, value in self._fresh:
            buffer.assign(tf.fill(buffer.shape, tf.cast(value, buffer.dtype)))
        for buffer, variable in self._copies:
            buffer.assign(variable)
        self._restarted_at.assign(tf.cast(self._leaf.iterations, tf.int64))

    def flats(self) -> list[Any]:
        """The buffers' values, flat, one tensor a dtype, for `set_flats` to take back."""
        return [
            tf.concat([tf.reshape(tf.cast(buffer, dtype), [-1]) for buffer in buffers], 0)
            for dtype, buffers in self._by_dtype()
        ]

    def set_flats(self, flats: Sequence[Any]) -> None:
        """Put values in, in the form of `flats`."""
        for (_, buffers), flat in zip(self._by_dtype(), flats, strict=True):
            start = 0
            for buffer in buffers:
                size = buffer.shape.num_elements()
                part = tf.reshape(flat[start : start + size], buffer.shape)
                buffer.assign(tf.cast(part, buffer.dtype))
                start += size

    def _by_dtype(self) -> list[tuple[str, list[Any]]]:
        by_dtype: dict[str, list[Any]] = {}
        for buffer in self._buffers:
            by_dtype.setdefault(slow_dtype(buffer), []).append(buffer)
        return list(by_dtype.items())


def _buffers(leaf: keras.optimizers.Optimizer) -> list[Any]:
    others = [leaf._learning_rate, leaf._iterations]
    others += getattr(leaf, "_model_variables_moving_average", [])
    others += getattr(leaf, "_accumulated_gradients", [])
    skipped = {id(other) for other in others}
    return [
        native(variable)
        for variable in leaf.variables
        if id(variable) not in skipped and native(variable).dtype.is_floating
    ]


def _count_from(leaf: keras.optimizers.Optimizer, restarted_at: Any) -> None:
    """Have the optimizer's update see its steps since ``restarted_at``, a number of steps.

    Keras has one counter for the bias correction and for the learning-rate schedule. Only the
    update itself, where the learning rate is known already, is given the shorter count.
    """
    update = leaf._backend_update_step

    def update_since_the_reset(*args: Any) -> None:
        iterations = leaf._iterations
        passes = int(leaf.gradient_accumulation_steps or 1)
        # Not setattr: Keras would track the tensor as it tracks variables.
        vars(leaf)["_iterations"] = tf.cast(iterations, tf.int64) - restarted_at * passes
        try:
            update(*args)
        finally:
            vars(leaf)["_iterations"] = iterations

    vars(leaf)["_backend_update_step"] = update_since_the_reset
