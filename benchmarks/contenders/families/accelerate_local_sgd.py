"""accelerate's LocalSGD."""

import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.local_sgd import LocalSGD

from benchmarks.contenders.families import gloo
from benchmarks.contenders.families.torch_trainer import TorchTrainer, inner_of, model_of
from benchmarks.contenders.protocol import Batch, CannotRunError, Setting, Work


class AccelerateTrainer(TorchTrainer):
    """Trains within the context manager, which averages once more when it ends."""

    def manage(self, within: LocalSGD, accelerator: Accelerator) -> None:
        """Begin."""
        self._within, self._accelerator = within, accelerator
        within.__enter__()

    def step(self, batch: Batch) -> None:
        """As accelerate's guide has it."""
        self._accelerator.backward(self._work.torch_loss(self._through, batch))
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._within.step()

    def finish(self) -> None:
        """The last average."""
        self._within.__exit__(None, None, None)
        gloo.end()


def make(work: Work, setting: Setting) -> AccelerateTrainer:
    gloo.describe(setting)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    accelerator = Accelerator(cpu=True)
    if accelerator.num_processes != setting.ranks:
        raise CannotRunError(
            f"accelerate sees {accelerator.num_processes} of {setting.ranks} processes"
        )
    model = model_of(work, setting)
    through: Any
    through, optimizer = accelerator.prepare(model, inner_of(work, setting, model))
    torch.set_num_threads(1)
    trainer = AccelerateTrainer(work, model, optimizer, setting.period, through)
    trainer.manage(LocalSGD(accelerator, through, setting.period), accelerator)
    return trainer
