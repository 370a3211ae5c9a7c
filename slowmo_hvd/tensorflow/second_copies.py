"""Optimizers that keep the weights a second time, and would undo a sync from that copy.

FTRL computes the weights anew in each step from ``linear``. ScheduleFreeAdamW takes its steps in z
and pulls the weights after it. So when a window begins, the copy is set to the weights.

A user's own optimizer names such copies in an attribute ``second_copies``. It is a tuple with the
names of the attributes that hold them. Each of these is a list with a variable for each weight.
"""

import itertools
from collections.abc import Collection
from typing import Any

import keras
import tensorflow as tf

from slowmo_hvd.core.checks import check_copies
from slowmo_hvd.tensorflow.native import native

# Not in every release of Keras 3.
_ScheduleFree = getattr(keras.optimizers, "ScheduleFreeAdamW", ())


def second_copies(leaf: keras.optimizers.Optimizer) -> list[Any]:
    """The optimizer's variables that hold the weights, as tf.Variables."""
    return [native(copy) for copy in _copies(leaf) if copy is not None]


def follow(
    leaf: keras.optimizers.Optimizer,
    *,
    of: Collection[int] | None = None,
    at_start: bool = False,
) -> None:
    """Set the copies to the weights.

    Args:
        leaf: the optimizer.
        of: the ids of the tf.Variables whose copies to set; None for all.
        at_start: whether no step has been taken. FTRL then begins at 0, as in Keras.
    """
    if at_start and isinstance(leaf, keras.optimizers.Ftrl):
        return
    for position, (copy, variable) in enumerate(
        zip(_copies(leaf), itertools.cycle(leaf._trainable_variables), strict=False)
    ):
        if copy is None or not (of is None or id(native(variable)) in of):
            continue
        value = tf.convert_to_tensor(native(variable))
        if isinstance(leaf, keras.optimizers.Ftrl):
            value = _linear(leaf, value, native(leaf._accumulators[position]))
        native(copy).assign(value)


def _copies(leaf: keras.optimizers.Optimizer) -> list[Any]:
    if isinstance(leaf, keras.optimizers.Ftrl):
        return list(leaf._linears)
    if isinstance(leaf, _ScheduleFree):
        return list(leaf._momentums)
    names = check_copies(type(leaf).__name__, getattr(leaf, "second_copies", ()))
    return [copy for name in names for copy in getattr(leaf, name)]


def _linear(leaf: keras.optimizers.Ftrl, weight: Any, accumulator: Any) -> Any:
    """What ``linear`` must be for FTRL's weights, (clip(linear, ±l1) - linear) / quadratic."""
    lr = tf.cast(leaf.learning_rate, weight.dtype)
    l2 = leaf.l2_regularization_strength + leaf.beta / (2 * lr)
    quadratic = accumulator**-leaf.learning_rate_power / lr + 2 * l2
    return -(weight * quadratic + tf.sign(weight) * leaf.l1_regularization_strength)
