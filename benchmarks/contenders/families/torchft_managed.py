"""torchft's LocalSGD and DiLoCo: each rank is a replica group, and rank 0 has the lighthouse.

torchft is not among this project's requirements: ``pip install torchft``.
"""

import os
import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torchft import Manager, ProcessGroupGloo
from torchft.coordination import LighthouseServer
from torchft.local_sgd import DiLoCo, LocalSGD

from benchmarks.contenders.families import gloo
from benchmarks.contenders.families.torch_trainer import TorchTrainer, inner_of, model_of
from benchmarks.contenders.protocol import CannotRunError, Setting, Work

LIGHTHOUSE_PORT = 29510
_TIMEOUT = timedelta(minutes=10)


class TorchftTrainer(TorchTrainer):
    """Trains within one of torchft's context managers."""

    def manage(self, within: Any, manager: Manager, others: list[Any]) -> None:
        """Begin."""
        self._within, self._manager, self._others = within, manager, others
        within.__enter__()

    def finish(self) -> None:
        """One model on all workers: the mean, where the last window is not over yet."""
        self._within.__exit__(None, None, None)
        self._manager.start_quorum()
        averages = [param.detach().clone() for param in self._model.parameters()]
        for work in [
            self._manager.allreduce(tensor, reduce_op=dist.ReduceOp.AVG) for tensor in averages
        ]:
            work.wait()
        if not self._manager.should_commit():
            raise RuntimeError("torchft did not commit the last average")
        for param, average in zip(self._model.parameters(), averages, strict=True):
            param.data.copy_(average)


def make(work: Work, setting: Setting, *, diloco: bool = False) -> TorchftTrainer:
    gloo.describe(setting)
    os.environ.update(RANK="0", WORLD_SIZE="1")  # within its replica group
    lighthouse = None
    if setting.rank == 0:
        lighthouse = LighthouseServer(
            bind=f"[::]:{LIGHTHOUSE_PORT}", min_replicas=setting.ranks, join_timeout_ms=60_000
        )
    own = socket.gethostbyname(socket.gethostname())
    store = dist.TCPStore(own, 0, is_master=True, wait_for_workers=False)
    model = model_of(work, setting)
    inner = inner_of(work, setting, model)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=_TIMEOUT),
        load_state_dict=model.load_state_dict,
        state_dict=model.state_dict,
        min_replica_size=setting.ranks,
        use_async_quorum=False,
        timeout=_TIMEOUT,
        quorum_timeout=_TIMEOUT,
        rank=0,
        world_size=1,
        store_addr=own,
        store_port=store.port,
        lighthouse_addr=f"http://{setting.address}:{LIGHTHOUSE_PORT}",
        replica_id=f"replica{setting.rank}",
        hostname=own,
        init_sync=False,  # the first weights are equal
    )
    trainer = TorchftTrainer(work, model, inner, setting.period)
    trainer.manage(_within(manager, model, inner, setting, diloco), manager, [lighthouse, store])
    return trainer


def _within(
    manager: Manager, model: torch.nn.Module, inner: Any, setting: Setting, diloco: bool
) -> Any:
    if not diloco:
        return LocalSGD(manager, model, inner, sync_every=setting.period)
    if setting.period < 1:
        raise CannotRunError("DiLoCo needs a period")
    outer = torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True)  # the paper's
    return DiLoCo(manager, [model], inner, outer, sync_every=setting.period)
