"""Each worker alone: what no contender can be faster than."""

from benchmarks.contenders.families.torch_trainer import TorchTrainer, inner_of, model_of
from benchmarks.contenders.protocol import Setting, Work


def make(work: Work, setting: Setting) -> TorchTrainer:
    model = model_of(work, setting)
    return TorchTrainer(work, model, inner_of(work, setting, model), period=0)
