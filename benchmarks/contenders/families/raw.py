"""The raw allreduce as a contender: its step is the allreduce and nothing else."""

import horovod.torch as hvd
import torch

from benchmarks.contenders.families.horovod_raw import Raw
from benchmarks.contenders.protocol import Batch, Setting, Work


class RawContender:
    """Learns nothing."""

    period = 1

    def __init__(self, work: Work) -> None:
        self._raw = Raw(work.parameters)

    def step(self, batch: Batch) -> None:
        """The allreduce."""
        self._raw()

    def finish(self) -> None:
        """Nothing to do."""

    def loss(self, batch: Batch) -> float:
        """There is no model."""
        raise NotImplementedError

    def sync_seconds(self) -> list[float]:
        """There is no record."""
        return []

    def raw_allreduce(self) -> bool:
        """That is what a step is."""
        return False


def make(work: Work, setting: Setting) -> RawContender:
    torch.set_num_threads(1)
    hvd.init()
    return RawContender(work)
