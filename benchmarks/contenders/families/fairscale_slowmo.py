"""fairscale's SlowMo, which is no longer maintained; on a CPU it fails, and its words are kept.

fairscale is not among this project's requirements: ``pip install --no-build-isolation fairscale``.
"""

from fairscale.experimental.nn.data_parallel import SlowMoDistributedDataParallel

from benchmarks.contenders.families import gloo
from benchmarks.contenders.families.torch_trainer import TorchTrainer, inner_of, model_of
from benchmarks.contenders.protocol import Batch, Setting, Work


class FairscaleTrainer(TorchTrainer):
    """The slow step is a call of its own."""

    def step(self, batch: Batch) -> None:
        """As fairscale's guide has it."""
        self._work.torch_loss(self._through, batch).backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._through.perform_slowmo(self._optimizer)

    def finish(self) -> None:
        """Nothing is offered for that."""
        gloo.end()


def make(work: Work, setting: Setting) -> FairscaleTrainer:
    gloo.begin(setting)
    model = model_of(work, setting)
    through = SlowMoDistributedDataParallel(
        model,
        nprocs_per_node=1,
        slowmo_momentum=0.5,
        slowmo_frequency=setting.period,
        localsgd_frequency=setting.period,
    )
    trainer = FairscaleTrainer(work, model, inner_of(work, setting, model), setting.period, through)
    trainer.step(work.batch(setting, 0))  # so that a failure is known before anything is timed
    return trainer
