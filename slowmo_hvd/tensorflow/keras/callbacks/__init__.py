"""Horovod's Keras callbacks, rewritten for Keras 3, and two callbacks of SlowMo's.

They have the names, arguments and meaning of those in ``horovod.tensorflow.keras.callbacks``, which
fail on Keras 3, and they work with any Keras optimizer. They differ in these ways:

- `BroadcastGlobalVariablesCallback` broadcasts before the first batch if it can. Horovod's
  broadcasts after it, so the first steps of all ranks except the root are lost.
- `MetricAverageCallback` raises the same error on every rank if the ranks' metrics differ, for
  example if only one rank validates. Horovod's waits for ever.
- `LearningRateScheduleCallback` and `LearningRateWarmupCallback` correct the momentum by scaling
  the optimizer's buffers once. Keras 3 builds the coefficient into the graph of the training step,
  so changing it for one batch has no effect.
- `BestModelCheckpoint` takes its file name from the attribute ``filepath``, and raises an error if
  it is not set.
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
