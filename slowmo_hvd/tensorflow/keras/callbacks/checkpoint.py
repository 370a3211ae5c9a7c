"""BestModelCheckpoint: saves the best model of a ``fit`` to its attribute ``filepath``."""

import os
from typing import Any

import keras


class BestModelCheckpoint(keras.callbacks.ModelCheckpoint):  # type: ignore[misc]
    """Saves the best model so far to ``filepath``, an attribute that must be set before ``fit``.

    This is ``keras.callbacks.ModelCheckpoint(save_best_only=True)`` for code that makes its
    callbacks before it knows where to save, such as Horovod's Spark estimators. Use it on one rank
    only. With SlowMo, put it after `FlushCallback`.

    Args:
        monitor: the metric that decides which model is best.
        verbose: 1 to print messages.
        save_weights_only: whether to save only the weights. ``filepath`` must then end in
            ".weights.h5", and otherwise in ".keras" or ".h5".
        mode: "min", "max", or "auto" to infer it from the metric.
        save_freq: "epoch", or a number of batches.

    Raises:
        ValueError: ``filepath`` is set to a name with another ending, or is not set when ``fit``
            begins.
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
            filepath=f"not set yet{self._suffixes[0]}",  # Keras 3 does not accept None
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
        """Where to save. The name can have the placeholders of ModelCheckpoint."""
        return self._filepath

    @filepath.setter
    def filepath(self, value: str | os.PathLike[str] | None) -> None:
        path = None if value is None else os.fspath(value)
        if path is not None and not path.endswith(self._suffixes):
            raise ValueError(f"filepath must end in {' or '.join(self._suffixes)}, got {path!r}")
        self._filepath = path

    def on_train_begin(self, logs: Any = None) -> None:
        """Check that ``filepath`` is set."""
        super().on_train_begin(logs)
        if self.filepath is None:
            raise ValueError(
                "BestModelCheckpoint has no filepath: set callback.filepath before fit()"
            )
