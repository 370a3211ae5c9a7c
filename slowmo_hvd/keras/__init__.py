"""``import slowmo_hvd.keras as hvd`` in place of ``import horovod.keras as hvd``.

Keras 3 is one package. So what is not Horovod's here is that of `slowmo_hvd.tensorflow.keras`.
"""

# ruff: noqa: E402, F403
import importlib
from typing import TYPE_CHECKING, Any

_ours = importlib.import_module("slowmo_hvd.tensorflow.keras")  # raises if there is no Horovod

from horovod.keras import *

from slowmo_hvd.core.submodules import offer_submodules as _offer_submodules

DistributedOptimizer = _ours.DistributedOptimizer
PartialDistributedOptimizer = _ours.PartialDistributedOptimizer
Sync, SyncRecord, SyncStats = _ours.Sync, _ours.SyncRecord, _ours.SyncStats
schedules, loggers = _ours.schedules, _ours.loggers
callbacks, elastic, load_model = _ours.callbacks, _ours.elastic, _ours.load_model
_offer_submodules("slowmo_hvd.tensorflow.keras", __name__)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Everything else is Horovod's, which has no types."""
