"""torch's DistributedDataParallel, which averages gradients while the backward pass goes on."""

from torch.nn.parallel import DistributedDataParallel

from benchmarks.contenders.families import gloo
from benchmarks.contenders.families.torch_trainer import TorchTrainer, inner_of, model_of
from benchmarks.contenders.protocol import Setting, Work


class DDPTrainer(TorchTrainer):
    """Leaves the group at the end."""

    def finish(self) -> None:
        """All hold one model already."""
        gloo.end()


def make(work: Work, setting: Setting) -> DDPTrainer:
    gloo.begin(setting)
    model = model_of(work, setting)
    through = DistributedDataParallel(model)
    return DDPTrainer(work, model, inner_of(work, setting, model), period=1, through=through)
