"""The best model of a ``fit``, saved where the attribute ``filepath`` says."""

import os
from typing import Any

import keras


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
