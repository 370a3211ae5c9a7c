"""A worker in TensorFlow, for the tests of both frameworks. Its steps are in a ``tf.function``."""

from typing import Any

import keras
import tensorflow as tf

import slowmo_hvd.tensorflow as hvd


def error_out_of(error: type[Exception]) -> tuple[type[Exception], ...]:
    """What ``error``, raised in a sync, is to the script: what a graph makes of it, if in one."""
    return error, tf.errors.OpError


class SGDWorker:
    """See tests/workers.py."""

    def __init__(
        self, size: int, *, lr: float, momentum: float, loss_scaled: bool, **slowmo: Any
    ) -> None:
        self._weights = tf.Variable([0.0] * size)
        self.inner = keras.optimizers.SGD(lr, momentum=momentum)
        outside = (
            keras.optimizers.LossScaleOptimizer(self.inner, dynamic_growth_steps=3)
            if loss_scaled
            else self.inner
        )
        self.optimizer = hvd.DistributedOptimizer(outside, **slowmo)
        self._lr = lr
        self._step = tf.function(self._apply, autograph=False)

    def _apply(self, gradient: Any) -> None:
        gradients = tf.fill(self._weights.shape, self.optimizer.scale_loss(gradient))
        self.optimizer.apply_gradients([(gradients, self._weights)])

    def step(self, gradient: float) -> None:
        self._step(tf.constant(gradient))

    def weights(self) -> list[float]:
        values: list[float] = self._weights.numpy().tolist()
        return values

    def take_all_from(self, root: int) -> None:
        if not self.optimizer.built:  # no step yet
            self.optimizer.build([self._weights])
        hvd.broadcast_variables([self._weights, *self.optimizer.variables], root_rank=root)

    def steps_taken(self) -> int:
        return int(self._variable("step")) if self.optimizer.built else 0

    def momentum(self) -> list[float]:
        (buffer,) = self.inner.momentums
        return [-value / self._lr for value in buffer.numpy().tolist()]

    def set_momentum(self, value: float) -> None:
        (buffer,) = self.inner.momentums
        buffer.assign(tf.fill(buffer.shape, -value * self._lr))

    def slow_momentum(self) -> list[float]:
        if not self.optimizer.built:  # no step yet
            return [0.0] * self._weights.shape[0]
        values: list[float] = self._variable("slow_momentum").tolist()
        return values

    def _variable(self, ending: str) -> Any:
        (found,) = [v for v in self.optimizer.variables if v.path.split("/")[-1].endswith(ending)]
        return found.numpy()
