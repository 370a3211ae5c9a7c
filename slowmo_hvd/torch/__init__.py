"""``import slowmo_hvd.torch as hvd`` where ``import horovod.torch as hvd`` stood.

Everything that horovod.torch offers is here, submodules included; DistributedOptimizer and
broadcast_optimizer_state are SlowMo's.
"""

# ruff: noqa: E402, F401, F403
from slowmo_hvd.core.horovod import require_horovod

require_horovod("torch")

from horovod.torch import *

from slowmo_hvd.core.schedule import Sync
from slowmo_hvd.core.stats import SyncRecord, SyncStats
from slowmo_hvd.torch.elastic_state import register_handler as _register_handler
from slowmo_hvd.torch.functions import broadcast_optimizer_state
from slowmo_hvd.torch.optimizer import DistributedOptimizer
from slowmo_hvd.torch.submodules import offer_submodules

offer_submodules("horovod.torch", __name__)
_register_handler()
