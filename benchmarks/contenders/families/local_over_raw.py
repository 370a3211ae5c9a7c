"""Each worker alone, while raw allreduces of as many bytes go on behind its steps.

Nothing is packed, and nothing is learnt from the others: on the same processors, no overlap can be
faster.
"""

from typing import Any

import horovod.torch as hvd
import torch

from benchmarks.contenders.families.cycle import send_seldom
from benchmarks.contenders.families.torch_trainer import TorchTrainer, inner_of, model_of
from benchmarks.contenders.protocol import Batch, Setting, Work


class LocalOverRawTrainer(TorchTrainer):
    """Begins an allreduce with each window, and waits for it at the window's end."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._steps = 0
        self._tensor = torch.ones(self._work.parameters)
        self._handle: int | None = None

    def step(self, batch: Batch) -> None:
        """A local step."""
        if self._steps % self.period == 0:
            self.finish()
            self._handle = hvd.allreduce_async_(self._tensor, name="behind", op=hvd.Average)
        super().step(batch)
        self._steps += 1

    def finish(self) -> None:
        """Wait for the last allreduce."""
        if self._handle is not None:
            hvd.synchronize(self._handle)
            self._handle = None


def make(work: Work, setting: Setting) -> LocalOverRawTrainer:
    send_seldom()
    hvd.init()
    model = model_of(work, setting)
    return LocalOverRawTrainer(work, model, inner_of(work, setting, model), setting.period)
