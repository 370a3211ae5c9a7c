"""Where a step can be taken: eagerly or in a ``tf.function``, and not anywhere else."""

import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, TypeVar

import keras
import tensorflow as tf
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

from slowmo_hvd.tensorflow.native import native

_LOSS_SCALE = keras.optimizers.LossScaleOptimizer.__module__
_DEPTH = 8  # frames of Keras and TensorFlow between a LossScaleOptimizer and us
_Function = TypeVar("_Function", bound=Callable[..., Any])
# AutoGraph rewrites what a user's tf.function calls, and would rewrite this package too.
as_written: Callable[[_Function], _Function] = tf.autograph.experimental.do_not_convert


def check_context() -> None:
    """Raise ValueError where a sync could not be carried out, or not by all ranks.

    That is the case under a tf.distribute strategy, inside an XLA computation, in a graph of
    TensorFlow 1, and inside a LossScaleOptimizer, which skips its optimizer only on the rank that
    overflows.
    """
    with tf.init_scope():
        if not tf.executing_eagerly():
            raise ValueError("DistributedOptimizer needs TensorFlow 2, with eager execution on")
    refuse_strategy()
    if tf.inside_function() and GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
        raise ValueError(
            "DistributedOptimizer cannot step inside XLA, where Horovod has no collectives: leave "
            "jit_compile=True out of this tf.function, or compile the model with jit_compile=False"
        )
    if _inside_loss_scale():
        raise ValueError(
            "a LossScaleOptimizer around DistributedOptimizer would skip steps on the rank that "
            "overflows alone, and the ranks would wait for each other for ever: put it inside, "
            "hvd.DistributedOptimizer(keras.optimizers.LossScaleOptimizer(optimizer))"
        )


def refuse_strategy() -> None:
    """Raise ValueError under a tf.distribute strategy."""
    if tf.distribute.has_strategy():
        raise ValueError(
            "DistributedOptimizer cannot work under a tf.distribute strategy: Horovod takes its "
            "place, with one process for each device"
        )


def initialised(variables: Iterable[Any]) -> bool:
    """Whether the variables have values. Not while a ``tf.function`` that makes them is traced.

    TensorFlow traces such a function twice. The first trace makes the variables, which then get
    their first values. The second trace, in which no variables can be made, makes the graph that
    runs.
    """
    with tf.init_scope():
        return all(bool(native(variable).is_initialized().numpy()) for variable in variables)


def traced_for_making_variables() -> None:
    """Turn the graph of the first of the two traces into one that must not run.

    It would run if a variable's first value depends on the function's arguments, or if the step is
    in its own ``tf.function`` inside the one that makes the variables.
    """
    tf.debugging.Assert(
        False,
        [
            "DistributedOptimizer cannot begin with variables that have no values yet where the "
            "step's graph is made, as in a tf.function that makes them from its arguments, or "
            "around the tf.function that steps: call the model on one batch before the first step"
        ],
    )


def _inside_loss_scale() -> bool:
    frame: FrameType | None = sys._getframe(2)
    for _ in range(_DEPTH):
        if frame is None:
            return False
        if frame.f_globals.get("__name__") == _LOSS_SCALE:
            return True
        frame = frame.f_back
    return False
