"""Learning rates by epoch or batch, and the correction of the momentum with them."""

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import horovod.tensorflow as hvd
import keras
import tensorflow as tf

from slowmo_hvd.tensorflow.native import native


class LearningRateScheduleCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Sets the learning rate to ``initial_lr * multiplier(epoch)``, and logs it as ``lr``.

    Momentum correction (arXiv 1706.02677, section 2.1): the buffers of keras.optimizers.SGD and
    RMSprop hold steps, learning rate included, so where that changes they are scaled with it. That
    is the arithmetic of Horovod's, which multiplies the coefficient instead for one batch; with
    Nesterov's momentum Horovod's scaled the look-ahead of that batch too, which has the new
    learning rate already. Keras 3's other optimizers have no buffers to correct.

    ``steps_per_execution=n`` makes n batches one: their first sets the learning rate.

    Args:
        initial_lr: the learning rate at the start of training.
        multiplier: a function of the epoch; or a number, that to the power of the epochs since
            ``start_epoch``.
        start_epoch: the first epoch to set the learning rate in.
        end_epoch: the first to leave it alone again; None for never.
        staircase: call ``multiplier`` once an epoch with its number from 0, rather than in every
            batch with ``epoch + batch / steps_per_epoch``.
        momentum_correction: whether to correct the momentum.
        steps_per_epoch: batches; None for what ``fit`` knows. For ``staircase=False`` only.

    Raises:
        ValueError: ``initial_lr`` is None; or, as ``fit`` begins, the steps are not known.
        TypeError: in ``fit``, by Keras: the optimizer has a learning-rate schedule of its own.
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
        """Find out the steps of an epoch."""
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
        """Set the learning rate, if it is time."""
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
    """The tf.Variables of m, in m ← μ m - γ g and the like, where μ > 0."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    # By class and not by the attributes: Muon has them too, and its buffer is free of γ.
    names = {keras.optimizers.SGD: "momentums", keras.optimizers.RMSprop: "_momentums"}
    for cls, name in names.items():
        if isinstance(optimizer, cls) and optimizer.momentum > 0:
            # None for variables that are not trained by gradients; nothing before the first step.
            yield from (native(m) for m in getattr(optimizer, name, []) if m is not None)


class LearningRateWarmupCallback(LearningRateScheduleCallback):
    """Raises the learning rate from ``initial_lr / hvd.size()`` to ``initial_lr``, batch by batch.

    Over the first ``warmup_epochs``, as in arXiv 1706.02677, for gradients that are averaged over
    all ranks. ``epoch`` here counts the batch about to be done, so that an epoch ends on a round
    value: lr = initial_lr / size * ((size - 1) * epoch / warmup_epochs + 1).

    Args:
        initial_lr: the learning rate to arrive at.
        warmup_epochs: how many epochs it takes.
        momentum_correction: as in `LearningRateScheduleCallback`.
        steps_per_epoch: likewise.
        verbose: 1 to say on rank 0 when it is done.

    Raises:
        ValueError: as `LearningRateScheduleCallback`.
        TypeError: likewise.
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
        """Log the learning rate, and say so if the warm-up is done."""
        super().on_epoch_end(epoch, logs)
        if epoch == self.warmup_epochs - 1 and self.verbose > 0 and hvd.rank() == 0:
            rate = self._learning_rate()
            print(f"\nEpoch {epoch + 1}: finished gradual learning rate warmup to {rate:g}.")
