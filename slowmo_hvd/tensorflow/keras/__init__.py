"""``import slowmo_hvd.tensorflow.keras as hvd`` in place of ``horovod.tensorflow.keras``.

It has everything that horovod.tensorflow.keras has. What no longer works with Keras 3 is rewritten:
callbacks, elastic states and `load_model`.
"""

# ruff: noqa: F403
import importlib
from typing import TYPE_CHECKING, Any

from horovod.tensorflow.keras import *

from slowmo_hvd import schedules as schedules
from slowmo_hvd.core.records import SyncRecord as SyncRecord
from slowmo_hvd.core.records import SyncStats as SyncStats
from slowmo_hvd.core.schedule import Sync as Sync
from slowmo_hvd.tensorflow import loggers as loggers
from slowmo_hvd.tensorflow.keras.load import load_model as load_model
from slowmo_hvd.tensorflow.optimizer import DistributedOptimizer as DistributedOptimizer
from slowmo_hvd.tensorflow.optimizer import (
    PartialDistributedOptimizer as PartialDistributedOptimizer,
)

# Not with `import`, which finds Horovod's modules of these names: they were imported above.
callbacks = importlib.import_module(f"{__name__}.callbacks")
elastic = importlib.import_module(f"{__name__}.elastic")

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Everything else is Horovod's, which has no types."""
