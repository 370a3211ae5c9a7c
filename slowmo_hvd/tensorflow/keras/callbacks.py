"""Horovod's Keras callbacks, written anew for Keras 3, and one of SlowMo's.

They have the names, the arguments and the meaning of ``horovod.tensorflow.keras.callbacks``,
whose own fail on Keras 3, and work with any Keras optimizer. What differs, and why:

- `BroadcastGlobalVariablesCallback` broadcasts before the first batch rather than after it, where
  it can: the first steps of all ranks but the root were thrown away.
- `MetricAverageCallback` raises the same error on every rank where the ranks have other metrics,
  as with validation on one of them: Horovod's waits for ever.
- `LearningRateScheduleCallback` and `LearningRateWarmupCallback` correct the momentum by scaling
  the optimizer's buffers, once: Keras 3 builds the coefficient into the graph of the training
  step, where changing it for a batch does nothing.
- `BestModelCheckpoint` gets its file name as the attribute ``filepath``, and says so if not.
- `FlushCallback` is SlowMo's.
"""

import numbers
import os
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from functools import partial
from typing import Any

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf

from slowmo_hvd.core.messages import gather_json
from slowmo_hvd.tensorflow.exchange import gather_figures
from slowmo_hvd.tensorflow.functions import broadcast_variables, shared_variables
from slowmo_hvd.tensorflow.optimizer import DistributedOptimizer
from slowmo_hvd.tensorflow.slow_model import native

__all__ = [
    "BestModelCheckpoint",
    "BroadcastGlobalVariablesCallback",
    "FlushCallback",
    "LearningRateScheduleCallback",
    "LearningRateWarmupCallback",
    "MetricAverageCallback",
]


class BroadcastGlobalVariablesCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Gives every rank the root's model and optimizer, once, so that all train on from one start.

    At the beginning of ``fit`` if the model is built on every rank, else after its first batch,
    before which a model without input shape has no variables. The states of the model's random
    generators remain each rank's own. Collectives over all ranks.

    Args:
        root_rank: the rank whose values all take, for instance from a checkpoint.
        device: where to broadcast; "" where Horovod thinks best.
        local_variables: a variable, or several, that remain each rank's own.

    Raises:
        ValueError: ``local_variables`` has something else than variables. In ``fit``, on every
            rank: the ranks' variables are not alike.
    """

    def __init__(
        self, root_rank: int, device: str = "", local_variables: Iterable[Any] | None = None
    ) -> None:
        super().__init__()
        self.root_rank = root_rank
        self.device = device
        self.broadcast_done = False
        self._local: set[Any] = set()
        if isinstance(local_variables, tf.Variable | keras.Variable):
            local_variables = [local_variables]
        for variable in local_variables or []:
            self.register_local_var(variable)

    def register_local_var(self, var: Any) -> None:
        """Leave this variable of the model or the optimizer to each rank."""
        if not isinstance(var, tf.Variable | keras.Variable):
            raise ValueError(
                f"local variables must be Keras variables or tf.Variables, got {var!r}"
            )
        self._local.add(native(var).ref())

    def on_train_begin(self, logs: Any = None) -> None:
        """Broadcast, if all ranks have something to."""
        if self.broadcast_done:
            return
        built = all(layer.built for layer in self.model._flatten_layers())
        # A rank with a loaded model is ready before one whose model waits for its first batch.
        if all(_gather(built, "built")):
            self._broadcast()

    def on_batch_end(self, batch: int, logs: Any = None) -> None:
        """Broadcast, if that has not been possible before."""
        if not self.broadcast_done:
            self._broadcast()

    def _broadcast(self) -> None:
        optimizer = self.model.optimizer
        # Keras would build it in the first batch; the root's may come from a checkpoint, built.
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        variables = [
            native(variable)
            for variable in (*shared_variables(self.model), *optimizer.variables)
            if native(variable).ref() not in self._local
        ]
        _check_alike(variables)
        with tf.device(self.device):
            broadcast_variables(variables, self.root_rank)
        self.broadcast_done = True


def _check_alike(variables: list[Any]) -> None:
    """Raise the same ValueError on every rank unless all have variables of the same kind."""
    kinds = [f"{variable.dtype.name}{variable.shape.as_list()}" for variable in variables]
    first, *others = _gather(kinds, "variables")
    for rank, theirs in enumerate(others, 1):
        if theirs == first:
            continue
        cure = "use the same model and optimizer on every rank, with the same local variables"
        if len(theirs) != len(first):
            raise ValueError(
                f"the ranks differ in the number of variables of model and optimizer: {len(first)} "
                f"on rank 0, {len(theirs)} on rank {rank}; {cure}"
            )
        position = next(i for i, kind in enumerate(first) if kind != theirs[i])
        raise ValueError(
            f"the ranks differ in variable {position} of model and optimizer: {first[position]} on "
            f"rank 0, {theirs[position]} on rank {rank}; {cure}"
        )


class MetricAverageCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Makes the metrics of an epoch their mean over the ranks, for the callbacks after this one.

    Put it before ReduceLROnPlateau, EarlyStopping, TensorBoard and others that read metrics.
    A collective over all ranks.

    Args:
        device: not used; Horovod's has it. A few numbers travel, by way of the CPU.

    Raises:
        ValueError: at an epoch's end, on every rank, if the ranks have other metrics.
    """

    def __init__(self, device: str = "") -> None:
        super().__init__()
        self.device = device

    def on_epoch_end(self, epoch: int, logs: MutableMapping[str, Any] | None = None) -> None:
        """Replace the numbers in ``logs``, as floats. All else in it stays."""
        logs = {} if logs is None else logs
        ours = {name: float(value) for name, value in sorted(logs.items()) if _is_number(value)}
        by_rank = _gather(ours, "metrics")
        for rank, theirs in enumerate(by_rank):
            if list(theirs) != list(by_rank[0]):
                raise ValueError(
                    f"the ranks have other metrics: {', '.join(by_rank[0]) or 'none'} on rank 0, "
                    f"{', '.join(theirs) or 'none'} on rank {rank}; give fit() the same metrics "
                    "and validate on every rank or on none"
                )
        for name in ours:
            logs[name] = sum(theirs[name] for theirs in by_rank) / len(by_rank)


def _is_number(value: Any) -> bool:
    if isinstance(value, numbers.Real):
        return True
    if not isinstance(value, np.generic | np.ndarray | tf.Tensor | tf.Variable | keras.Variable):
        return False
    array = np.asarray(value)
    return array.ndim == 0 and array.dtype.kind in "biuf"


def _gather(value: Any, name: str) -> list[Any]:
    """Every rank's value. A collective."""
    gather = partial(
        gather_figures, name=f"slowmo.callbacks.{name}", process_set=hvd.global_process_set
    )
    return [theirs for _, theirs in sorted(gather_json(value, gather).items())]


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


class BestModelCheckpoint(keras.callbacks.ModelCheckpoint):  # type: ignore[misc]
    """Saves the best model so far to ``filepath``, an attribute to be set before ``fit``.

    ``keras.callbacks.ModelCheckpoint(save_best_only=True)``, for code that makes its callbacks
    before it knows where to save, such as Horovod's Spark estimators. Use it on one rank only, and
    after `FlushCallback` with SlowMo.

    Args:
        monitor: the metric that decides which model is best.
        verbose: 1 to say what it does.
        save_weights_only: save the weights only; ``filepath`` then ends in ".weights.h5", and in
            ".keras" or ".h5" otherwise.
        mode: "min", "max", or "auto" to guess by the metric.
        save_freq: "epoch", or a number of batches.

    Raises:
        ValueError: ``filepath`` is set to a name that ends otherwise, or not set as ``fit`` begins.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        verbose: int = 0,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
    ) -> None:
        self._suffixes = (".weights.h5",) if save_weights_only else (".keras", ".h5")
        super().__init__(
            filepath=f"not set yet{self._suffixes[0]}",  # Keras 3 takes no None
            monitor=monitor,
            verbose=verbose,
            save_best_only=True,
            save_weights_only=save_weights_only,
            mode=mode,
            save_freq=save_freq,
        )
        self.filepath = None

    @property
    def filepath(self) -> str | None:
        """Where to save; it can have the placeholders of ModelCheckpoint."""
        return self._filepath

    @filepath.setter
    def filepath(self, value: str | os.PathLike[str] | None) -> None:
        path = None if value is None else os.fspath(value)
        if path is not None and not path.endswith(self._suffixes):
            raise ValueError(f"filepath must end in {' or '.join(self._suffixes)}, got {path!r}")
        self._filepath = path

    def on_train_begin(self, logs: Any = None) -> None:
        """Make sure that there is somewhere to save."""
        super().on_train_begin(logs)
        if self.filepath is None:
            raise ValueError(
                "BestModelCheckpoint has no filepath: set callback.filepath before fit()"
            )


class FlushCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Brings SlowMo's workers together before each validation and at the end of each epoch.

    Validation then measures their average, and so do and save EarlyStopping, ModelCheckpoint and
    others that come after this one in the list. Each flush ends a window early, so an epoch should
    last many of them. Give it to every rank: a flush is a collective. Ranks may differ in whether
    they validate.

    Does nothing in ``model.evaluate`` by itself, which one rank may call alone: ``fit`` ends with
    a flush anyway.

    Raises:
        TypeError: as ``fit`` begins, if the model has an optimizer other than SlowMo's.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fitting = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Make sure that there is something to flush."""
        optimizer = self.model.optimizer
        if not isinstance(optimizer, DistributedOptimizer):
            raise TypeError(
                "FlushCallback needs a model compiled with slowmo_hvd.tensorflow's "
                f"DistributedOptimizer, got {type(optimizer).__name__}: wrap it, or leave the "
                "callback out"
            )
        self._fitting = True

    def on_test_begin(self, logs: Any = None) -> None:
        """Flush, in ``fit``."""
        if self._fitting:
            self.model.optimizer.flush()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Flush, which does nothing after a validation."""
        self.model.optimizer.flush()

    def on_train_end(self, logs: Any = None) -> None:
        """Leave evaluation alone again."""
        self._fitting = False
