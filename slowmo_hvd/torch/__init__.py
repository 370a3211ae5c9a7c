"""``import slowmo_hvd.torch as hvd`` in place of ``import horovod.torch as hvd``.

It has everything that horovod.torch has, including its submodules. DistributedOptimizer and
broadcast_optimizer_state are SlowMo's. join first lands the averages that are under way.
"""

# ruff: noqa: E402, F403
from typing import TYPE_CHECKING, Any

from slowmo_hvd.core.requirements import require_horovod as _require_horovod

_require_horovod("torch")

from horovod.torch import *

from slowmo_hvd import schedules as schedules
from slowmo_hvd.core.records import SyncRecord as SyncRecord
from slowmo_hvd.core.records import SyncStats as SyncStats
from slowmo_hvd.core.schedule import Sync as Sync
from slowmo_hvd.core.submodules import offer_submodules as _offer_submodules
from slowmo_hvd.torch import loggers as loggers
from slowmo_hvd.torch.elastic_state import prepare_states as _prepare_states
from slowmo_hvd.torch.functions import broadcast_optimizer_state as broadcast_optimizer_state
from slowmo_hvd.torch.functions import join as join
from slowmo_hvd.torch.optimizer import DistributedOptimizer as DistributedOptimizer

_offer_submodules("horovod.torch", __name__)
_prepare_states()

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Everything else is Horovod's, which has no types."""
