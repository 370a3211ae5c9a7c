"""Sync hooks that write records, each registered with one line: ``hvd.loggers``."""

from typing import Any

import tensorflow as tf

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
        writer: a folder, or what ``tf.summary.create_file_writer`` returned.

    Returns:
        A handle whose ``remove()`` stops this.
    """
    return attach(optimizer, _TensorBoard(writer))


class _TensorBoard:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def open(self) -> None:
        if not hasattr(self._writer, "as_default"):
            self._writer = tf.summary.create_file_writer(str(self._writer))

    def write(self, record: SyncRecord) -> None:
        with self._writer.as_default():
            for name, value in named(record).items():
                tf.summary.scalar(name, value, record.step)
        self._writer.flush()  # so that nothing is lost if the run dies
