"""torch.distributed's group on Gloo, between the ranks that horovodrun has started."""

import os
from datetime import timedelta

import torch.distributed as dist

from benchmarks.contenders.protocol import Setting

PORT = 29500
_TIMEOUT = timedelta(minutes=10)


def describe(setting: Setting) -> None:
    """Write down the variables that torchrun would have set."""
    os.environ.update(
        MASTER_ADDR=setting.address,
        MASTER_PORT=str(PORT),
        RANK=str(setting.rank),
        WORLD_SIZE=str(setting.ranks),
        LOCAL_RANK="0",
        LOCAL_WORLD_SIZE="1",
    )
    if "HOROVOD_GLOO_IFACE" in os.environ:
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["HOROVOD_GLOO_IFACE"]


def begin(setting: Setting) -> None:
    """Make the group."""
    describe(setting)
    dist.init_process_group("gloo", timeout=_TIMEOUT)


def end() -> None:
    """Leave the group, all together."""
    dist.barrier()
    dist.destroy_process_group()
