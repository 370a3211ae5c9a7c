"""Elastic training with ``model.fit``: Horovod's state and callbacks, for Keras 3."""

from typing import Any

import keras

from slowmo_hvd.tensorflow.elastic import TensorFlowKerasState
from slowmo_hvd.tensorflow.elastic import run as run

__all__ = [
    "CommitStateCallback",
    "KerasState",
    "UpdateBatchStateCallback",
    "UpdateEpochStateCallback",
    "run",
]


class KerasState(TensorFlowKerasState):
    """A Keras model and its optimizer in elastic training, including the slow state.

    It replaces ``horovod.tensorflow.keras.elastic.KerasState``.

    Args:
        model: a built Keras model.
        optimizer: its optimizer, if the model is not compiled with it.
        **kwargs: other objects to save and synchronize, as attributes of this object. The callbacks
            of this module need ``batch=0, epoch=0``.
    """

    def __init__(self, model: Any, optimizer: Any = None, **kwargs: Any) -> None:
        super().__init__(model, optimizer=optimizer, **kwargs)


class CommitStateCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Commits the state after every ``batches_per_commit`` batches and after every epoch.

    It replaces ``horovod.tensorflow.keras.elastic.CommitStateCallback``. A commit copies the model,
    and asks rank 0 with a small broadcast whether hosts have changed. Put this callback after those
    that update the state. With ``steps_per_execution=n``, n batches count as one.

    Args:
        state: a state of `slowmo_hvd.tensorflow.elastic` or of Horovod.
        batches_per_commit: the number of batches between two commits.
    """

    def __init__(self, state: Any, batches_per_commit: int = 1) -> None:
        super().__init__()
        self.state = state
        self.batches_per_commit = batches_per_commit
        self.batches_remaining = batches_per_commit

    def on_train_begin(self, logs: Any = None) -> None:
        """Start counting here, as a worker that has just arrived does."""
        self.batches_remaining = self.batches_per_commit

    def on_batch_end(self, batch: int, logs: Any = None) -> None:
        """Commit if that is due."""
        self.batches_remaining -= 1
        if self.batches_remaining == 0:
            self.state.commit()
            self.batches_remaining = self.batches_per_commit

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Commit."""
        self.state.commit()


class UpdateBatchStateCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps the number of the last batch in ``state.batch``, which is 0 after the end of an epoch.

    It replaces ``horovod.tensorflow.keras.elastic.UpdateBatchStateCallback``, with one difference.
    Horovod's callback lowers ``params["steps"]``, to shorten the first epoch after a reset by the
    batches that are already done. Keras 3 takes the length of an epoch from the data and
    ``steps_per_epoch`` and does not look at ``params`` again, so this had no effect. To go on
    inside an epoch, give ``fit`` the rest of it: ``dataset.skip(state.batch)``, or fewer
    ``steps_per_epoch``.

    Args:
        state: a state with the attribute ``batch``.
    """

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state

    def on_batch_end(self, batch: int, logs: Any = None) -> None:
        """Note the batch, counted from 0 where ``fit`` began this epoch."""
        self.state.batch = batch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Set the batch to 0 for the next epoch."""
        self.state.batch = 0


class UpdateEpochStateCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps the number of finished epochs in ``state.epoch``, including those before a reset.

    It replaces ``horovod.tensorflow.keras.elastic.UpdateEpochStateCallback``. It expects ``fit`` to
    count its epochs from 0. So call ``fit`` with ``epochs=total - state.epoch``, and not with
    ``initial_epoch``.

    Args:
        state: a state with the attribute ``epoch``.
    """

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state
        self.initial_epoch = state.epoch

    def on_train_begin(self, logs: Any = None) -> None:
        """Go on counting from the epochs that are done."""
        self.initial_epoch = self.state.epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Count this epoch."""
        self.state.epoch = self.initial_epoch + epoch + 1
