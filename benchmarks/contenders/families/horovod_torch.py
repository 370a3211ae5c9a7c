"""Horovod's own optimizer, which averages gradients at every step."""

import horovod.torch as hvd

from benchmarks.contenders.families.horovod_raw import Raw
from benchmarks.contenders.families.torch_trainer import TorchTrainer, inner_of, model_of
from benchmarks.contenders.protocol import Setting, Work


class HorovodTrainer(TorchTrainer):
    """With an allreduce to compare with."""

    def raw_allreduce(self) -> bool:
        """Horovod's."""
        if not hasattr(self, "_raw"):
            self._raw = Raw(sum(param.numel() for param in self._model.parameters()))
        self._raw()
        return True


def make(work: Work, setting: Setting, *, fp16: bool = False) -> HorovodTrainer:
    hvd.init()
    model = model_of(work, setting)
    optimizer = hvd.DistributedOptimizer(
        inner_of(work, setting, model),
        named_parameters=model.named_parameters(),
        compression=hvd.Compression.fp16 if fp16 else hvd.Compression.none,
    )
    return HorovodTrainer(work, model, optimizer, period=1)
