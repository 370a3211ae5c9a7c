"""The inner optimizer's settings, such as momentum and clipnorm, in the outer optimizer."""

from typing import Any

import keras

from slowmo_hvd.tensorflow.leaves import Multi, leaves

#: The settings that every Keras optimizer has. The outer one leaves them all to the inner one.
OF_EVERY_OPTIMIZER = {
    "weight_decay",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "loss_scale_factor",
    "gradient_accumulation_steps",
}


def holder(optimizer: keras.optimizers.Optimizer, name: str) -> keras.optimizers.Optimizer:
    """The optimizer with this setting: a LossScaleOptimizer for its own, else the one inside."""
    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer) and (
        name in OF_EVERY_OPTIMIZER or not hasattr(optimizer, name)
    ):
        optimizer = optimizer.inner_optimizer
    return optimizer


def is_setting(optimizer: keras.optimizers.Optimizer, name: str) -> bool:
    """Whether the inner optimizer, or one of those in a MultiOptimizer, has this setting."""
    return any(hasattr(one, name) for one in (holder(optimizer, name), *leaves(optimizer)))


def change(optimizer: keras.optimizers.Optimizer, name: str, value: Any) -> None:
    """Give the inner optimizer's setting another value, as ``optimizer.name = value`` does.

    Raises:
        AttributeError: there are several optimizers, in a MultiOptimizer.
    """
    one = holder(optimizer, name)
    if isinstance(one, Multi) and not hasattr(type(one), name):
        raise AttributeError(
            f"{name} is a setting of each optimizer inside the MultiOptimizer, got one value "
            f"{value!r} for all: set it on those of optimizer.inner_optimizer.optimizers"
        )
    setattr(one, name, value)
