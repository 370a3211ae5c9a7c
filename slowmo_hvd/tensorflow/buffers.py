"""Line 2 of Algorithm 1: what happens to the inner optimizer's buffers when a window begins."""

from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.pace import refuse_copies, refuse_counts
from slowmo_hvd.tensorflow.native import native
from slowmo_hvd.tensorflow.second_copies import follow, second_copies

#: Some of the model's tf.Variables, by id; None for all.
Fragment: TypeAlias = Collection[int] | None

# Their updates count no steps, so the buffers of some weights can be reset alone.
_COUNT_NO_STEPS = (
    keras.optimizers.SGD,
    keras.optimizers.RMSprop,
    keras.optimizers.Adagrad,
    keras.optimizers.Adadelta,
    keras.optimizers.Lion,
)


def check_strategy(strategy: str, leaf: keras.optimizers.Optimizer) -> None:
    """Raise ValueError if this optimizer's buffers cannot be treated with this strategy."""
    if strategy == "reset" and getattr(leaf, "warmup_steps", False):  # of ScheduleFreeAdamW
        raise ValueError(
            f"buffers='reset' would take {type(leaf).__name__}'s count back before its "
            f"warmup_steps={leaf.warmup_steps} are done: give it a learning_rate schedule that "
            "warms up in their place, or use 'maintain' or 'average'"
        )


def check_pace(leaf: keras.optimizers.Optimizer, config: SlowMoConfig) -> None:
    """Raise ValueError if an overlap or fragments do not fit this built optimizer.

    Args:
        leaf: the optimizer.
        config: the number of steps that overlap, and the number of fragments.
    """
    name = type(leaf).__name__
    if second_copies(leaf):
        refuse_copies(config, name)
    if type(leaf) not in _COUNT_NO_STEPS:
        refuse_counts(config, name)


class Buffers:
    """The buffers of one inner optimizer that updates variables, and what a window does to them.

    A buffer is any float variable of the optimizer, except its learning rate, its average of the
    weights (EMA), the gradients that it adds up, and a second copy of the weights. These do not
    remember a direction.
    """

    def __init__(
        self,
        leaf: keras.optimizers.Optimizer,
        strategy: str,
        add_variable: Callable[..., Any],
    ) -> None:
        """Look at a built optimizer.

        Args:
            leaf: the optimizer.
            strategy: "reset", "maintain" or "average".
            add_variable: the outer optimizer's method, for the step count at the last reset.
        """
        self.strategy = strategy
        self._leaf = leaf
        self._buffers = _buffers(leaf)
        self._owners = _owners(leaf)
        self._fresh: list[Any] = []
        #: The optimizer's count of steps at the last reset.
        self.restarted_at = native(
            add_variable(shape=(), dtype="int64", name=f"{leaf.name}_restarted_at")
        )
        _count_from(leaf, self.restarted_at)

    def look(self) -> None:
        """Note what each buffer is when it is new, as soon as the buffers have values. Eager."""
        self._fresh = _fresh_values(self._leaf)

    @property
    def averaged_kinds(self) -> list[Any]:
        """Shapes and dtypes of the buffers that are averaged."""
        averaged = self._buffers if self.strategy == "average" else []
        return [(tuple(buffer.shape), buffer.dtype.name) for buffer in averaged]

    def follow(self, *, of: Fragment = None, at_start: bool = False) -> None:
        """Set a second copy of the weights to the weights: of all, or of those with these ids."""
        follow(self._leaf, of=of, at_start=at_start)

    def averages_of(self, weights: Collection[int]) -> list[Any]:
        """The averages (EMA), if any, of these weights, given by the ids of tf.Variables."""
        pairs = zip(_averages(self._leaf), self._leaf._trainable_variables, strict=False)
        return [average for average, variable in pairs if id(native(variable)) in weights]

    def reset(self, fragment: Fragment = None) -> None:
        """Leave the optimizer as if it had taken no step, except in its learning-rate schedule.

        If it counts no steps, as in `check_pace`, this can be done for some weights alone.

        If the step count were kept while the moments are reset, Adam's bias correction would be
        off. If it restarted for the schedule too, the schedule would be rewound.
        """
        inside = {id(buffer) for buffer in self.of(fragment)}
        for buffer, value in zip(self._buffers, self._fresh, strict=True):
            if id(buffer) in inside:
                buffer.assign(tf.broadcast_to(value, buffer.shape))
        self.restarted_at.assign(tf.cast(self._leaf.iterations, tf.int64))

    def forget(self) -> None:
        """`reset`, and also drop everything else that remembers weights that are not finite."""
        self.reset()
        for gradient in _added_up(self._leaf):
            gradient.assign(tf.zeros_like(gradient))
        for average, variable in zip(
            _averages(self._leaf), self._leaf._trainable_variables, strict=False
        ):
            average.assign(tf.cast(native(variable), average.dtype))

    def owner(self, buffer: Any) -> int | None:
        """The weight of a buffer, by the id of its tf.Variable; None if it belongs to all."""
        return self._owners.get(id(buffer))

    def of(self, fragment: Fragment) -> list[Any]:
        """The buffers of these weights. Those that belong to all weights are in every fragment."""
        if fragment is None:
            return self._buffers
        owners = {None, *fragment}
        return [buffer for buffer in self._buffers if self.owner(buffer) in owners]

    def touched(self) -> list[Any]:
        """The tf.Variables that a sync may read or write, and that a step uses too."""
        others = [*_averages(self._leaf), *_added_up(self._leaf), *second_copies(self._leaf)]
        return [*self._buffers, *others, native(self._leaf._iterations)]


def _buffers(leaf: keras.optimizers.Optimizer) -> list[Any]:
    others = [leaf._learning_rate, leaf._iterations]
    others += [*_averages(leaf), *_added_up(leaf), *second_copies(leaf)]
    skipped = {id(native(other)) for other in others if _is_variable(other)}
    natives = map(native, leaf.variables)
    return [value for value in natives if id(value) not in skipped and value.dtype.is_floating]


def _owners(leaf: keras.optimizers.Optimizer) -> dict[int, int]:
    """The weight to which each buffer belongs, both by the id of their tf.Variables.

    An optimizer keeps each kind of buffer in a list, in the order of the weights. Anything else
    that it keeps belongs to all weights.
    """
    owners = {}
    weights = leaf._trainable_variables
    for kept in vars(leaf).values():
        if not isinstance(kept, list) or len(kept) != len(weights) or kept is leaf._variables:
            continue
        for buffer, weight in zip(kept, weights, strict=True):
            if _is_variable(buffer):
                owners[id(native(buffer))] = id(native(weight))
    return owners


def _averages(leaf: keras.optimizers.Optimizer) -> list[Any]:
    """The optimizer's average of each weight (EMA), if it keeps them."""
    return [native(average) for average in getattr(leaf, "_model_variables_moving_average", [])]


def _added_up(leaf: keras.optimizers.Optimizer) -> list[Any]:
    """The sum so far of each gradient, if the optimizer adds up several for a step."""
    return [native(gradient) for gradient in getattr(leaf, "_accumulated_gradients", [])]


def _is_variable(value: Any) -> bool:
    return isinstance(value, keras.Variable | tf.Variable)  # a learning rate can be a schedule


def _fresh_values(leaf: keras.optimizers.Optimizer) -> list[Any]:
    """What each buffer is when it is new: one number, or a tensor if it is not uniform.

    If the optimizer has taken steps, the values come from a new optimizer of its kind.
    """
    if int(leaf._iterations.numpy()) > 0:
        twin = type(leaf).from_config(leaf.get_config())
        twin.build(leaf._trainable_variables)
        return _fresh_values(twin)
    return [_compact(buffer) for buffer in _buffers(leaf)]


def _compact(buffer: Any) -> Any:
    value = tf.convert_to_tensor(buffer)
    if value.shape.num_elements() == 0:
        return value
    first = tf.reshape(value, [-1])[0]
    return first if tf.reduce_all(value == first) else value


def _count_from(leaf: keras.optimizers.Optimizer, restarted_at: Any) -> None:
    """Make the optimizer's update see the number of its steps since ``restarted_at``.

    Keras has one counter for the bias correction and for the learning-rate schedule. Only the
    update itself gets the shorter count, because there the learning rate is known already.
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
