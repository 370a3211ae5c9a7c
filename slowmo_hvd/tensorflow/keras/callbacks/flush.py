"""FlushCallback: one model for all workers before each validation and at the end of each epoch."""

from typing import Any

import keras

from slowmo_hvd.tensorflow.optimizer import DistributedOptimizer


class FlushCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Averages SlowMo's workers before each validation and at the end of each epoch.

    Validation then measures the workers' average. EarlyStopping, ModelCheckpoint and other
    callbacks that come after this one in the list use and save that average too. Each flush ends a
    window early, so an epoch should have many windows. Give this callback to every rank, because a
    flush is a collective. Some ranks may validate and others not.

    It does nothing in a ``model.evaluate`` outside ``fit``, which one rank may call alone: ``fit``
    ends with a flush anyway.

    Raises:
        TypeError: when ``fit`` begins, if the model's optimizer is not SlowMo's.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fitting = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Check that there is something to flush."""
        optimizer = self.model.optimizer
        if not isinstance(optimizer, DistributedOptimizer):
            raise TypeError(
                "FlushCallback needs a model compiled with slowmo_hvd.tensorflow's "
                f"DistributedOptimizer, got {type(optimizer).__name__}: wrap it, or leave the "
                "callback out"
            )
        self._fitting = True

    def on_test_begin(self, logs: Any = None) -> None:
        """Flush, if this is a validation in ``fit``."""
        if self._fitting:
            self.model.optimizer.flush()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Flush. After a validation this does nothing."""
        self.model.optimizer.flush()

    def on_train_end(self, logs: Any = None) -> None:
        """Do nothing in evaluations from now on."""
        self._fitting = False
