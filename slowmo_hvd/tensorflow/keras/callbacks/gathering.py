"""What the callbacks of all ranks tell each other."""

from functools import partial
from typing import Any

import horovod.tensorflow as hvd

from slowmo_hvd.core.gathering import gather_json
from slowmo_hvd.tensorflow.exchange import gather_figures


def gather(value: Any, name: str) -> list[Any]:
    """Every rank's value. A collective."""
    figures = partial(
        gather_figures, name=f"slowmo.callbacks.{name}", process_set=hvd.global_process_set
    )
    return [theirs for _, theirs in sorted(gather_json(value, figures).items())]
