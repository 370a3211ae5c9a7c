"""Each worker alone, in Keras."""

from benchmarks.contenders.families.keras_trainer import KerasTrainer, inner_of, prepare
from benchmarks.contenders.protocol import Setting, Work


def make(work: Work, setting: Setting) -> KerasTrainer:
    prepare(setting)
    return KerasTrainer(work, inner_of(work, setting), period=0)
