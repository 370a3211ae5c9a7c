"""``import slowmo_hvd.keras as hvd`` where ``import horovod.keras as hvd`` stood.

Keras 3 is one package, so this is `slowmo_hvd.tensorflow.keras`, with the two names that
horovod.keras has besides.
"""

# ruff: noqa: F403
from typing import TYPE_CHECKING, Any

from slowmo_hvd.tensorflow.keras import *  # isort: skip  # it says whether Horovod is there
from horovod.keras import Adasum as Adasum

from slowmo_hvd.core.submodules import offer_submodules as _offer_submodules

_offer_submodules("slowmo_hvd.tensorflow.keras", __name__)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """All else is Horovod's, which has no types."""
