"""MetricAverageCallback: one value of each metric for all ranks."""

import numbers
from collections.abc import MutableMapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from slowmo_hvd.tensorflow.keras.callbacks.gathering import gather


class MetricAverageCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Replaces an epoch's metrics by their mean over the ranks, for the callbacks after this one.

    Put it before ReduceLROnPlateau, EarlyStopping, TensorBoard and other callbacks that read
    metrics. A collective over all ranks.

    Args:
        device: not used; it is one of Horovod's arguments. Only a few numbers travel, on the CPU.

    Raises:
        ValueError: at an epoch's end, on every rank, if the ranks' metrics differ.
    """

    def __init__(self, device: str = "") -> None:
        super().__init__()
        self.device = device

    def on_epoch_end(self, epoch: int, logs: MutableMapping[str, Any] | None = None) -> None:
        """Replace the numbers in ``logs`` by floats. Everything else in it stays."""
        logs = {} if logs is None else logs
        ours = {name: float(value) for name, value in sorted(logs.items()) if _is_number(value)}
        by_rank = gather(ours, "metrics")
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
