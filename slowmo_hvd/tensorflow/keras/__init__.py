"""``import slowmo_hvd.tensorflow.keras as hvd`` where ``import horovod.tensorflow.keras`` stood.

Everything that horovod.tensorflow.keras offers is here. What Keras 3 broke of it, callbacks,
elastic states and `load_model`, is written anew.
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

# Not by `import`, which finds Horovod's modules of these names, imported with all else above.
callbacks = importlib.import_module(f"{__name__}.callbacks")
elastic = importlib.import_module(f"{__name__}.elastic")

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """All else is Horovod's, which has no types."""
