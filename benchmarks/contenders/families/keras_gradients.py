"""Gradients averaged by Horovod at every step, in Keras.

Horovod's own layer for Keras averages nothing in Keras 3, so the training step does it by hand.
"""

from typing import Any

import horovod.tensorflow as hvd

from benchmarks.contenders.families.keras_trainer import KerasTrainer, inner_of, prepare
from benchmarks.contenders.protocol import Setting, Work


class AveragingTrainer(KerasTrainer):
    """With Horovod's averages in the place of a worker's own gradients."""

    def gradients(self, gradients: list[Any]) -> list[Any]:
        """The workers' mean."""
        return [
            hvd.allreduce(gradient, op=hvd.Average, name=f"gradient{number}")
            for number, gradient in enumerate(gradients)
        ]


def make(work: Work, setting: Setting) -> AveragingTrainer:
    hvd.init()
    prepare(setting)
    return AveragingTrainer(work, inner_of(work, setting), period=1)
