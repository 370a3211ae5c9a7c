"""A model of any size whose gradients are computed elsewhere, as on an accelerator.

The processor waits for them, and is free meanwhile for what a contender does behind the steps.
"""

import time
from typing import Any

from benchmarks.contenders.protocol import Batch
from benchmarks.contenders.works.sizes import Size

SECONDS = 0.25  # of a step elsewhere


class Waiting(Size):
    """So many million parameters."""

    def __init__(self, millions: int) -> None:
        super().__init__(millions)
        self.name = f"wait{millions}m"

    def torch_loss(self, model: Any, batch: Batch) -> Any:
        """Its mean loss, a while later."""
        time.sleep(SECONDS)
        return super().torch_loss(model, batch)

    def keras_loss(self, model: Any, x: Any, y: Any) -> Any:
        """Its mean loss, a while later."""
        import tensorflow as tf

        waited = tf.py_function(lambda: time.sleep(SECONDS), [], [])
        with tf.control_dependencies([waited]):
            return super().keras_loss(model, tf.identity(x), y)
