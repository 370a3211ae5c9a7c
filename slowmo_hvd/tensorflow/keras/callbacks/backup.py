"""BackupAndRestore: training that continues after it was killed."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import horovod.tensorflow as hvd
import keras

from slowmo_hvd.tensorflow.keras.callbacks.gathering import gather

_NAME = re.compile(r"epoch-(\d+)\.weights\.h5")


class BackupAndRestore(keras.callbacks.Callback):  # type: ignore[misc]
    """Saves the model and optimizer after each epoch, and restores them when ``fit`` begins.

    It works like ``keras.callbacks.BackupAndRestore``, but for several workers: it flushes, rank 0
    saves, and all ranks restore the same state. If the job is killed while it saves, the backup of
    the epoch before remains. Give this callback to every rank, after `FlushCallback` and
    `MetricAverageCallback`.

    Args:
        backup_dir: a folder that every rank sees. Use it for nothing else, because it is removed.
        delete_checkpoint: whether to remove the folder when ``fit`` is over.

    Raises:
        ValueError: on every rank when ``fit`` begins, if the ranks see different epochs in the
            folder, if the model is not built, or if the backup is of another model or other
            settings.
    """

    def __init__(self, backup_dir: str | os.PathLike[str], delete_checkpoint: bool = True) -> None:
        super().__init__()
        self._folder = Path(backup_dir)
        self._deletes = delete_checkpoint

    def on_train_begin(self, logs: Any = None) -> None:
        """Restore the backup, if there is one."""
        epoch, path = max(self._saved(), default=(0, None))
        epochs = gather(epoch, "backup")
        for rank, theirs in enumerate(epochs):
            if theirs != epochs[0]:
                raise ValueError(
                    f"the ranks see different backups: of epoch {epochs[0]} on rank 0, of {theirs} "
                    f"on rank {rank}; backup_dir must be one folder that all of them see"
                )
        if path is None:
            return
        if not self.model.built:
            raise ValueError(
                "BackupAndRestore needs a model that is built: begin it with keras.Input(shape)"
            )
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        self._load(path)
        self.model._initial_epoch = epoch  # as in Keras' own callback

    def _load(self, path: Path) -> None:
        """Load the backup. A collective: all must have read it before any saves or removes."""
        error: Exception | None = None
        try:
            self.model.load_weights(path)
        except (OSError, ValueError) as raised:
            error = raised
        said = gather(str(error or ""), "restore")
        failed = next((rank for rank, words in enumerate(said) if words), None)
        if failed is not None:
            raise ValueError(
                f"cannot go on from {path.name}, by rank {failed}: {said[failed]}; remove the "
                "folder to begin afresh"
            ) from error

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Flush; on rank 0, save the model and remove the backup of the epoch before."""
        flush = getattr(self.model.optimizer, "flush", None)
        if flush is not None:  # otherwise the workers' weights are equal after every step
            flush()
        if hvd.rank() == 0:
            before = [path for _, path in self._saved()]
            self._folder.mkdir(parents=True, exist_ok=True)
            unfinished = self._folder / "unfinished.weights.h5"
            self.model.save_weights(unfinished, overwrite=True)
            unfinished.replace(self._folder / f"epoch-{epoch + 1}.weights.h5")
            for path in before:
                path.unlink()

    def on_train_end(self, logs: Any = None) -> None:
        """Remove the folder, unless it is to be kept."""
        if self._deletes and hvd.rank() == 0:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _saved(self) -> list[tuple[int, Path]]:
        """The number of epochs in each backup, and its file."""
        if not self._folder.is_dir():
            return []
        named = ((_NAME.fullmatch(path.name), path) for path in self._folder.iterdir())
        return [(int(match[1]), path) for match, path in named if match]
