"""``model.compile`` tells the model and the optimizer about each other.

Keras tells an optimizer nothing about the model that it is compiled with. It also decides two
things there that SlowMo needs otherwise. One is whether the training step becomes an XLA
computation, in which Horovod has no collectives. The other is that under mixed_float16 it puts a
LossScaleOptimizer around the optimizer, where it would skip SlowMo's steps only on the rank that
overflows. So ``compile`` is wrapped. It does what it did before, and a few more lines for our
DistributedOptimizer.
"""

import functools
import warnings
from typing import Any

import keras

from slowmo_hvd.tensorflow.optimizer import DistributedOptimizer


def install() -> None:
    """Wrap the one ``compile`` that all Keras models have; a second call does nothing."""
    # Where it is defined: Keras compares a model's compile with it to see whether it is Keras' own.
    owner = next(cls for cls in keras.Model.__mro__ if "compile" in vars(cls))
    original = vars(owner)["compile"]
    if hasattr(original, "_before_slowmo"):
        return

    @functools.wraps(original)
    def compile(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: A001
        original(self, *args, **kwargs)
        _adapt(self)

    vars(compile)["_before_slowmo"] = original
    setattr(owner, "compile", compile)  # noqa: B010


def _adapt(model: Any) -> None:
    outer = model.optimizer
    if isinstance(outer, keras.optimizers.LossScaleOptimizer) and isinstance(
        outer.inner_optimizer, DistributedOptimizer
    ):
        ours = outer.inner_optimizer
        if not isinstance(ours.inner_optimizer, keras.optimizers.LossScaleOptimizer):
            ours.inner_optimizer = keras.optimizers.LossScaleOptimizer(ours.inner_optimizer)
        model.optimizer = ours
    if not isinstance(model.optimizer, DistributedOptimizer):
        return
    model.optimizer.introduce(model)
    if model.jit_compile:
        warnings.warn(
            "jit_compile is turned off for this model: Horovod's collectives cannot be compiled "
            "by XLA; compile the model with jit_compile=False to silence this",
            stacklevel=3,
        )
        model.jit_compile = False
