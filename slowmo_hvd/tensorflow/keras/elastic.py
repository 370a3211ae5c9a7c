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
    """A Keras model and its optimizer in elastic training, slow state and all.

    In the place of ``horovod.tensorflow.keras.elastic.KerasState``.

    Args:
        model: a built Keras model.
        optimizer: its optimizer, where it is not compiled into the model.
        **kwargs: what else to save and synchronize, as attributes: ``batch=0, epoch=0``, for the
            callbacks here.
    """

    def __init__(self, model: Any, optimizer: Any = None, **kwargs: Any) -> None:
        super().__init__(model, optimizer=optimizer, **kwargs)


class CommitStateCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Commits the state after every ``batches_per_commit`` batches and every epoch.

    In the place of ``horovod.tensorflow.keras.elastic.CommitStateCallback``. A commit copies the
    model, and asks rank 0 over a small broadcast whether hosts have changed. Put it after the
    callbacks that update the state. ``steps_per_execution=n`` makes n batches count as one.

    Args:
        state: a state of `slowmo_hvd.tensorflow.elastic` or of Horovod.
        batches_per_commit: how many batches to do between two commits.
    """

    def __init__(self, state: Any, batches_per_commit: int = 1) -> None:
        super().__init__()
        self.state = state
        self.batches_per_commit = batches_per_commit
        self.batches_remaining = batches_per_commit

    def on_train_begin(self, logs: Any = None) -> None:
        """Count from here, as a worker that has just arrived does."""
        self.batches_remaining = self.batches_per_commit

    def on_batch_end(self, batch: int, logs: Any = None) -> None:
        """Commit, if it is time."""
        self.batches_remaining -= 1
        if self.batches_remaining == 0:
            self.state.commit()
            self.batches_remaining = self.batches_per_commit

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Commit."""
        self.state.commit()


class UpdateBatchStateCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps in ``state.batch`` the number of the batch just done, 0 after the end of an epoch.

    In the place of ``horovod.tensorflow.keras.elastic.UpdateBatchStateCallback``, with one thing
    less: that lowers ``params["steps"]``, to shorten the first epoch after a reset by the batches
    already done. Keras 3 takes the length of an epoch from the data and ``steps_per_epoch``, and
    does not look at ``params`` again, so nothing got shorter. To go on inside an epoch, give
    ``fit`` what is left of it: ``dataset.skip(state.batch)``, or fewer ``steps_per_epoch``.

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
        """Begin the next epoch at its first batch."""
        self.state.batch = 0


class UpdateEpochStateCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps in ``state.epoch`` how many epochs are done, those before a reset included.

    In the place of ``horovod.tensorflow.keras.elastic.UpdateEpochStateCallback``. It takes ``fit``
    to count its epochs from 0: call it with ``epochs=total - state.epoch``, not with
    ``initial_epoch``.

    Args:
        state: a state with the attribute ``epoch``.
    """

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state
        self.initial_epoch = state.epoch

    def on_train_begin(self, logs: Any = None) -> None:
        """Count on from the epochs done."""
        self.initial_epoch = self.state.epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Count this one."""
        self.state.epoch = self.initial_epoch + epoch + 1
