"""Every Keras optimizer that the suite trains with inside SlowMo."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
import pytest
from keras import ops


@keras.saving.register_keras_serializable(package="tests")
class SignMomentum(keras.optimizers.Optimizer):  # type: ignore[misc]
    """An optimizer as a user writes one: a buffer for each variable, and the count of steps."""

    def build(self, variables: Sequence[Any]) -> None:
        if self.built:
            return
        super().build(variables)
        self.velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        velocity = self.velocities[self._get_variable_index(variable)]
        self.assign(velocity, 0.7 * velocity + 0.3 * ops.cast(gradient, velocity.dtype))
        rate = learning_rate / ops.sqrt(ops.cast(self.iterations + 1, learning_rate.dtype))
        self.assign_sub(variable, ops.cast(rate, variable.dtype) * ops.sign(velocity))


def _works(name: str) -> bool:
    """Whether this release of Keras has it. Muon of 3.12 fails on TensorFlow without us too."""
    if name == "Muon":
        return hasattr(keras.optimizers.Muon, "lr_adjust")
    return hasattr(keras.optimizers, name)


def of_keras(name: str) -> Any:
    """A class of ``keras.optimizers``. Where this release's does not work the test is skipped."""
    if not _works(name):
        pytest.skip(f"Keras {keras.__version__} has no {name} that works")
    return getattr(keras.optimizers, name)


def _two_kinds() -> keras.optimizers.Optimizer:
    """SGD for the matrices, Adam for the rest."""
    sgd = keras.optimizers.SGD(0.2, momentum=0.9)
    adam = keras.optimizers.Adam(0.05, beta_2=0.95)
    mapping = keras.optimizers.OptimizerMap(adam, {".*/kernel": sgd})
    return keras.optimizers.MultiOptimizer(mapping)


# Keras takes the powers of β₂ in the variables' dtype, and 0.999 is 1 in bfloat16, hence 0.95.
_ALL: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "Adadelta": lambda: keras.optimizers.Adadelta(1.0),
    "Adafactor": lambda: keras.optimizers.Adafactor(0.05),
    "Adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "Adam": lambda: keras.optimizers.Adam(0.05, beta_2=0.95, amsgrad=True),
    "AdamW": lambda: keras.optimizers.AdamW(0.05, beta_2=0.95),
    "Adamax": lambda: keras.optimizers.Adamax(0.05),
    "Ftrl": lambda: keras.optimizers.Ftrl(0.1),
    "Lamb": lambda: keras.optimizers.Lamb(0.05, beta_2=0.95),
    "Lion": lambda: keras.optimizers.Lion(0.01),
    "LossScaleOptimizer": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.05, beta_2=0.95)
    ),
    "MultiOptimizer": _two_kinds,
    "Muon": lambda: keras.optimizers.Muon(0.05, adam_beta_2=0.95),
    "Nadam": lambda: keras.optimizers.Nadam(0.05, beta_2=0.95),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.02, momentum=0.9, centered=True),
    "SGD": lambda: keras.optimizers.SGD(0.2, momentum=0.9, nesterov=True, weight_decay=0.01),
    "ScheduleFreeAdamW": lambda: keras.optimizers.ScheduleFreeAdamW(0.05, beta_2=0.95),
    "the user's own": lambda: SignMomentum(0.01),
}

#: Those that work in this release of Keras.
INNER = {name: make for name, make in _ALL.items() if name == "the user's own" or _works(name)}

STRATEGIES = ("reset", "maintain", "average")  #: for their buffers

#: Classes of keras.optimizers that nothing is trained with.
OTHERS = {"Optimizer", "OptimizerMap"} | (set(_ALL) - set(INNER))


def classes_in_keras() -> set[str]:
    """The names of the classes that ``keras.optimizers`` exports."""
    return {name for name, value in vars(keras.optimizers).items() if inspect.isclass(value)}
