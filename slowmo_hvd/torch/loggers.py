"""Sync hooks that write records, each registered with one line: ``hvd.loggers``."""

from typing import Any

from slowmo_hvd.core.loggers import attach, named
from slowmo_hvd.core.loggers import csv as csv
from slowmo_hvd.core.loggers import json_lines as json_lines
from slowmo_hvd.core.loggers import wandb as wandb
from slowmo_hvd.core.records import SyncRecord

__all__ = ["csv", "json_lines", "tensorboard", "wandb"]


def tensorboard(optimizer: Any, writer: Any) -> Any:
    """Write scalars of each sync for TensorBoard, as ``slowmo/drift`` and so on.

    Args:
        optimizer: a DistributedOptimizer. Call this on every rank.
        writer: a folder, or a ``torch.utils.tensorboard.SummaryWriter``.

    Raises:
        ImportError: tensorboard is not installed.

    Returns:
        A handle whose ``remove()`` stops this.
    """
    return attach(optimizer, _TensorBoard(writer))


class _TensorBoard:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def open(self) -> None:
        if hasattr(self._writer, "add_scalar"):
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                f"loggers.tensorboard needs tensorboard: pip install tensorboard ({error})"
            ) from None
        self._writer = SummaryWriter(str(self._writer))

    def write(self, record: SyncRecord) -> None:
        for name, value in named(record).items():
            self._writer.add_scalar(name, value, record.step)
        self._writer.flush()  # so that nothing is lost if the run dies
