"""Models of one weight for the tests of callbacks in ``model.fit``.

The weight is w, and its gradient is the target: y_pred = w·1 and the loss is y·y_pred.
"""

from typing import Any

import keras
import numpy as np
import pytest

import slowmo_hvd.tensorflow.keras as hvd

#: How Keras runs the training step.
MODES: dict[str, dict[str, Any]] = {
    "graph": {},
    "eager": {"run_eagerly": True},
    "several": {"steps_per_execution": 2},
}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
#: Keras's own, where it saves variables under NumPy 2.
saves = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def product(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean(y_true * y_pred)


def model_of(
    start: float, optimizer: keras.optimizers.Optimizer | None = None, **mode: Any
) -> keras.Model:
    """One weight, built."""
    layer = keras.layers.Dense(
        1, use_bias=False, kernel_initializer=keras.initializers.Constant(start)
    )
    model = keras.Sequential([keras.Input((1,)), layer])
    compile_(model, optimizer, **mode)
    return model


def compile_(
    model: keras.Model, optimizer: keras.optimizers.Optimizer | None = None, **mode: Any
) -> None:
    optimizer = optimizer or keras.optimizers.SGD(1.0)
    model.compile(optimizer, product, **{"jit_compile": False, **mode})


def fit(model: keras.Model, gradients: list[float], *callbacks: Any, **kwargs: Any) -> Any:
    """One batch for each gradient, in this order."""
    x, y = np.ones((len(gradients), 1)), np.array(gradients, "float32")[:, None]
    options = {"batch_size": 1, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(x, y, callbacks=list(callbacks), **options)


def weight(model: keras.Model) -> float:
    return float(model.trainable_variables[0].numpy().item())


def slowmo(inner: keras.optimizers.Optimizer | None = None, **kwargs: Any) -> Any:
    return hvd.DistributedOptimizer(inner or keras.optimizers.SGD(1.0), **kwargs)
