"""``import slowmo_hvd.tensorflow as hvd`` in place of ``import horovod.tensorflow as hvd``.

It has everything that horovod.tensorflow has, including its submodules. What SlowMo changes is
SlowMo's own, and what Horovod wrote for Keras 2 is rewritten for Keras 3.
"""

# ruff: noqa: E402, F403
import importlib
from typing import TYPE_CHECKING, Any

from slowmo_hvd.core.requirements import require_horovod as _require_horovod
from slowmo_hvd.tensorflow.requirements import (
    require_keras_3_on_tensorflow as _require_keras_3_on_tensorflow,
)

# First, because with another Keras it seems as if Horovod were not built for TensorFlow.
_require_keras_3_on_tensorflow()
_require_horovod("tensorflow")

from horovod.tensorflow import *

from slowmo_hvd import schedules as schedules
from slowmo_hvd.core.records import SyncRecord as SyncRecord
from slowmo_hvd.core.records import SyncStats as SyncStats
from slowmo_hvd.core.schedule import Sync as Sync
from slowmo_hvd.core.submodules import offer_submodules as _offer_submodules
from slowmo_hvd.tensorflow import loggers as loggers
from slowmo_hvd.tensorflow.compile_hook import install as _install
from slowmo_hvd.tensorflow.functions import broadcast_variables as broadcast_variables
from slowmo_hvd.tensorflow.functions import join as join
from slowmo_hvd.tensorflow.gradient_tape import (
    DistributedGradientTape as DistributedGradientTape,
)
from slowmo_hvd.tensorflow.gradient_tape import (
    PartialDistributedGradientTape as PartialDistributedGradientTape,
)
from slowmo_hvd.tensorflow.optimizer import DistributedOptimizer as DistributedOptimizer
from slowmo_hvd.tensorflow.sync_batch_norm import (
    SyncBatchNormalization as SyncBatchNormalization,
)

# Not with `import`, which finds Horovod's module of this name: it was imported above.
elastic = importlib.import_module(f"{__name__}.elastic")
vars().pop("keras", None)  # Horovod's, if a script has imported that too
_offer_submodules("horovod.tensorflow", __name__)
_install()

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Everything else is Horovod's, which has no types."""
