"""``import slowmo_hvd.torch as hvd`` where ``import horovod.torch as hvd`` stood.

Everything that horovod.torch offers is here, submodules included; DistributedOptimizer and
broadcast_optimizer_state are SlowMo's.
"""

from slowmo_hvd.core.horovod import require_horovod

require_horovod("torch")

from horovod.torch import *  # noqa: E402, F403

from slowmo_hvd.torch.submodules import offer_submodules  # noqa: E402

offer_submodules("horovod.torch", __name__)

from slowmo_hvd.core.schedule import Sync  # noqa: E402
from slowmo_hvd.core.stats import SyncRecord, SyncStats  # noqa: E402
from slowmo_hvd.torch.functions import broadcast_optimizer_state  # noqa: E402
from slowmo_hvd.torch.optimizer import DistributedOptimizer  # noqa: E402

__all__ = [name for name in dir() if not name.startswith("_")]
