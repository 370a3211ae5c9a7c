"""Learning rates that depend on the epoch or batch, with momentum correction."""

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import horovod.tensorflow as hvd
import keras
import tensorflow as tf

from slowmo_hvd.tensorflow.native import native


class LearningRateScheduleCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Sets the learning rate to ``initial_lr * multiplier(epoch)``, and logs it as ``lr``.

    Momentum correction (arXiv 1706.02677, section 2.1): the buffers of keras.optimizers.SGD and
    RMSprop hold steps, which include the learning rate. So when the learning rate changes, they are
    scaled with it. Horovod's callback multiplies the coefficient for one batch instead, which is
    the same arithmetic; but with Nesterov's momentum it also scaled the look-ahead of that batch,
    which has the new learning rate already. Keras 3's other optimizers have no buffers to correct.

    With ``steps_per_execution=n``, n batches count as one, and the first of them sets the learning
    rate.

    Args:
        initial_lr: the learning rate at the start of training.
        multiplier: a function of the epoch; or a number, which is raised to the power of the number
            of epochs since ``start_epoch``.
        start_epoch: the first epoch in which to set the learning rate.
        end_epoch: the first epoch in which not to set it any more; None to set it until the end.
        staircase: whether to call ``multiplier`` once in each epoch with the epoch's number,
            from 0. If False, it is called in every batch with ``epoch + batch / steps_per_epoch``.
        momentum_correction: whether to correct the momentum.
        steps_per_epoch: the number of batches in an epoch; None to take the number from ``fit``. It
            is used only with ``staircase=False``.

    Raises:
        ValueError: ``initial_lr`` is None; or, when ``fit`` begins, the number of batches in an
            epoch is not known.
        TypeError: in ``fit``, from Keras, if the optimizer has a learning-rate schedule of its own.
    """

    def __init__(
        self,
        initial_lr: float,
        multiplier: float | Callable[[Any], float],
        start_epoch: int = 0,
        end_epoch: int | None = None,
        staircase: bool = True,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
    ) -> None:
        super().__init__()
        if initial_lr is None:
            raise ValueError("Parameter `initial_lr` is required: the optimizer's learning rate")
        self.initial_lr = initial_lr
        self.multiplier: Callable[[Any], float] = (
            multiplier
            if callable(multiplier)
            else lambda epoch: multiplier ** (epoch - start_epoch)
        )
        self.start_epoch = start_epoch
        self.end_epoch = end_epoch
        self.staircase = staircase
        self.momentum_correction = momentum_correction
        self.steps_per_epoch = steps_per_epoch
        self.current_epoch = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Find the number of batches in an epoch."""
        if self.staircase or self.steps_per_epoch:
            return
        self.steps_per_epoch = self.params.get("steps")
        if not self.steps_per_epoch:
            raise ValueError(
                "Could not autodetect the number of steps per epoch, since this data does not tell "
                f"its length; give {type(self).__name__}() or fit() steps_per_epoch"
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Note the epoch."""
        self.current_epoch = epoch

    def on_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Set the learning rate, if that is due."""
        if self.current_epoch < self.start_epoch or (
            self.end_epoch is not None and self.current_epoch >= self.end_epoch
        ):
            return
        if not self.staircase:
            assert self.steps_per_epoch is not None
            self._adjust(self.current_epoch + batch / self.steps_per_epoch)
        elif batch == 0:
            self._adjust(self.current_epoch)

    def on_epoch_end(self, epoch: int, logs: MutableMapping[str, Any] | None = None) -> None:
        """Log the learning rate."""
        if logs is not None:
            logs["lr"] = self._learning_rate()

    def _adjust(self, epoch: float) -> None:
        old = self._learning_rate()
        self.model.optimizer.learning_rate = self.initial_lr * self.multiplier(epoch)
        new = self._learning_rate()  # as rounded
        if not self.momentum_correction or new == old or old == 0:
            return
        for buffer in _momentum_buffers(self.model.optimizer):
            buffer.assign(buffer * tf.cast(new / old, buffer.dtype))

    def _learning_rate(self) -> float:
        return float(self.model.optimizer.learning_rate)


def _momentum_buffers(optimizer: Any) -> Iterator[Any]:
    """The tf.Variables that hold m in m ← μ m - γ g and similar rules, if μ > 0."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    # By class, not by attributes: Muon has these too, but its buffer does not include γ.
    names = {keras.optimizers.SGD: "momentums", keras.optimizers.RMSprop: "_momentums"}
    for cls, name in names.items():
        if isinstance(optimizer, cls) and optimizer.momentum > 0:
            # None for variables that are not trained by gradients; nothing before the first step.
            yield from (native(m) for m in getattr(optimizer, name, []) if m is not None)


class LearningRateWarmupCallback(LearningRateScheduleCallback):
    """Raises the learning rate from ``initial_lr / hvd.size()`` to ``initial_lr``, batch by batch.

    It does so over the first ``warmup_epochs``, as in arXiv 1706.02677, for gradients that are
    averaged over all ranks. The batch that is about to be done counts in ``epoch``, so that an
    epoch ends on a round value: lr = initial_lr / size * ((size - 1) * epoch / warmup_epochs + 1).

    Args:
        initial_lr: the learning rate at the end of the warm-up.
        warmup_epochs: the number of epochs in the warm-up.
        momentum_correction: as in `LearningRateScheduleCallback`.
        steps_per_epoch: as in `LearningRateScheduleCallback`.
        verbose: 1 to print a message on rank 0 when the warm-up is done.

    Raises:
        ValueError: as in `LearningRateScheduleCallback`.
        TypeError: as in `LearningRateScheduleCallback`.
    """

    def __init__(
        self,
        initial_lr: float,
        warmup_epochs: int = 5,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            initial_lr,
            self._share,
            end_epoch=warmup_epochs,
            staircase=False,
            momentum_correction=momentum_correction,
            steps_per_epoch=steps_per_epoch,
        )
        self.warmup_epochs = warmup_epochs
        self.verbose = verbose

    def _share(self, epoch: float) -> float:
        assert self.steps_per_epoch is not None
        done = (epoch + 1 / self.steps_per_epoch) / self.warmup_epochs
        size: int = hvd.size()
        return (done * (size - 1) + 1) / size

    def on_epoch_end(self, epoch: int, logs: MutableMapping[str, Any] | None = None) -> None:
        """Log the learning rate, and print a message if the warm-up is done."""
        super().on_epoch_end(epoch, logs)
        if epoch == self.warmup_epochs - 1 and self.verbose > 0 and hvd.rank() == 0:
            rate = self._learning_rate()
            print(f"\nEpoch {epoch + 1}: finished gradual learning rate warmup to {rate:g}.")
