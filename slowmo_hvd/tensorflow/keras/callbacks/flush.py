"""One model for all workers, before each validation and at each epoch's end."""

from typing import Any

import keras

from slowmo_hvd.tensorflow.optimizer import DistributedOptimizer


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
