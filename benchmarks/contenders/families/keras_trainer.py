"""What all contenders in Keras share: one thread, one model, one compiled step."""

from typing import Any

import keras
import tensorflow as tf

from benchmarks.contenders.protocol import Batch, Setting, Work


def prepare(setting: Setting) -> None:
    """One thread for computing, and the same first weights on every rank."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    keras.utils.set_random_seed(setting.seed)


def inner_of(work: Work, setting: Setting) -> Any:
    """AdamW or SGD with momentum; plain SGD where nothing is learnt."""
    if work.adaptive:
        return keras.optimizers.AdamW(setting.lr, weight_decay=0.01)
    if not work.held_out():
        return keras.optimizers.SGD(setting.lr)
    return keras.optimizers.SGD(setting.lr, momentum=0.9, nesterov=True)


class KerasTrainer:
    """Trains a model with an optimizer; by itself this sends nothing.

    Args:
        work: what is trained.
        optimizer: the inner one, or one around it.
        period: see Contender.
    """

    def __init__(self, work: Work, optimizer: Any, period: int) -> None:
        self.period = period
        self._work = work
        self._model = work.keras_model()
        self._optimizer = optimizer
        self._train = tf.function(self._step, autograph=False)
        self._test = tf.function(self._loss, autograph=False)

    def step(self, batch: Batch) -> None:
        """One step of the optimizer."""
        self._train(*map(tf.constant, batch))

    def finish(self) -> None:
        """Nothing to do."""

    def loss(self, batch: Batch) -> float:
        """The model's."""
        return float(self._test(*map(tf.constant, batch)))

    def sync_seconds(self) -> list[float]:
        """There is no record."""
        return []

    def raw_allreduce(self) -> bool:
        """In TensorFlow nothing is in place."""
        return False

    def gradients(self, gradients: list[Any]) -> list[Any]:
        """What the optimizer gets of a worker's own gradients: these."""
        return gradients

    def _loss(self, x: Any, y: Any) -> Any:
        return self._work.keras_loss(self._model, x, y)

    def _step(self, x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = self._loss(x, y)
        variables = self._model.trainable_variables
        own = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, variables)]
        self._optimizer.apply_gradients(zip(self.gradients(own), variables, strict=True))
