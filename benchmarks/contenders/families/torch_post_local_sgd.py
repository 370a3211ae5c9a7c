"""torch's PostLocalSGDOptimizer: from the first step on it averages weights, and no gradients."""

import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import (
    PostLocalSGDState,
    post_localSGD_hook,
)
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel

from benchmarks.contenders.families import gloo
from benchmarks.contenders.families.torch_trainer import TorchTrainer, inner_of, model_of
from benchmarks.contenders.protocol import Setting, Work


class PostLocalSGDTrainer(TorchTrainer):
    """Averages once more at the end, since torch offers nothing for that."""

    def finish(self) -> None:
        """One model on all workers."""
        self.average(dist.all_reduce, dist.get_world_size())
        gloo.end()


def make(work: Work, setting: Setting) -> PostLocalSGDTrainer:
    gloo.begin(setting)
    model = model_of(work, setting)
    through = DistributedDataParallel(model)
    state = PostLocalSGDState(
        process_group=None,
        subgroup=None,
        start_localSGD_iter=0,
        post_local_gradient_allreduce=False,
    )
    through.register_comm_hook(state, post_localSGD_hook)
    optimizer = PostLocalSGDOptimizer(
        inner_of(work, setting, model), PeriodicModelAverager(period=setting.period)
    )
    return PostLocalSGDTrainer(work, model, optimizer, setting.period, through)
