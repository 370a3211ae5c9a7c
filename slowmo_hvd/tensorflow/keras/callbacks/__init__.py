"""Horovod's Keras callbacks, written anew for Keras 3, and two of SlowMo's.

They have the names, the arguments and the meaning of ``horovod.tensorflow.keras.callbacks``,
whose own fail on Keras 3, and work with any Keras optimizer. What differs, and why:

- `BroadcastGlobalVariablesCallback` broadcasts before the first batch rather than after it, where
  it can: the first steps of all ranks but the root were thrown away.
- `MetricAverageCallback` raises the same error on every rank where the ranks have other metrics,
  as with validation on one of them: Horovod's waits for ever.
- `LearningRateScheduleCallback` and `LearningRateWarmupCallback` correct the momentum by scaling
  the optimizer's buffers, once: Keras 3 builds the coefficient into the graph of the training
  step, where changing it for a batch does nothing.
- `BestModelCheckpoint` gets its file name as the attribute ``filepath``, and says so if not.
- `FlushCallback` and `BackupAndRestore` are SlowMo's.
"""

from slowmo_hvd.tensorflow.keras.callbacks.backup import BackupAndRestore as BackupAndRestore
from slowmo_hvd.tensorflow.keras.callbacks.broadcast import (
    BroadcastGlobalVariablesCallback as BroadcastGlobalVariablesCallback,
)
from slowmo_hvd.tensorflow.keras.callbacks.checkpoint import (
    BestModelCheckpoint as BestModelCheckpoint,
)
from slowmo_hvd.tensorflow.keras.callbacks.flush import FlushCallback as FlushCallback
from slowmo_hvd.tensorflow.keras.callbacks.learning_rate import (
    LearningRateScheduleCallback as LearningRateScheduleCallback,
)
from slowmo_hvd.tensorflow.keras.callbacks.learning_rate import (
    LearningRateWarmupCallback as LearningRateWarmupCallback,
)
from slowmo_hvd.tensorflow.keras.callbacks.metrics import (
    MetricAverageCallback as MetricAverageCallback,
)

__all__ = [
    "BackupAndRestore",
    "BestModelCheckpoint",
    "BroadcastGlobalVariablesCallback",
    "FlushCallback",
    "LearningRateScheduleCallback",
    "LearningRateWarmupCallback",
    "MetricAverageCallback",
]
