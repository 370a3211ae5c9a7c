"""The memory that the wrapper adds, in units of the parameters, read off the resident set.

Run by ``horovodrun -np 2 python -m benchmarks.memory``.
"""

import ctypes
import gc

import psutil
import torch

import slowmo_hvd.torch as hvd
from benchmarks.models import fill_gradients, large_model


def resident() -> int:
    """The resident set in bytes, without what the C library keeps for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def main() -> None:
    hvd.init()
    torch.set_num_threads(1)
    for slow_momentum in (0.5, 0.0):
        model = large_model()
        size = sum(param.numel() * param.element_size() for param in model.parameters())
        fill_gradients(model)
        bare = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        bare.step()
        # Horovod's fusion buffer and its transport take memory once, for whoever comes first.
        warm = torch.zeros(size // 4)
        for _ in range(3):
            hvd.allreduce_(warm, name="warm", op=hvd.Sum)
        del warm
        before = resident()
        optimizer = hvd.DistributedOptimizer(
            bare, sync_period=2, slow_momentum=slow_momentum, buffers="maintain"
        )
        for _ in range(4):
            optimizer.step()
        after = resident()
        if hvd.rank() == 0:
            print(
                f"extra memory after two syncs, slow_momentum={slow_momentum}: "
                f"{(after - before) / size:.2f} times the parameters ({size / 1e6:.0f} MB)"
            )
        del optimizer, bare, model


if __name__ == "__main__":
    main()
