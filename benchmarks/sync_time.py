"""The time of one sync over one raw in-place allreduce of as many bytes.

Run by ``horovodrun -np 2 python -m benchmarks.sync_time``, or with ``tiny`` for many small tensors.
Both are measured in turns in one run, since the machine's speed changes from minute to minute; the
median of the ratios counts.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch

import slowmo_hvd.torch as hvd
from benchmarks.models import MODELS, fill_gradients
from benchmarks.ratios import summary

ROUNDS = 15


def seconds(work: Callable[[], object]) -> float:
    """The time that ``work`` takes on all ranks, begun together."""
    hvd.barrier()
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    hvd.init()
    torch.set_num_threads(1)
    model = MODELS[sys.argv[1] if len(sys.argv) > 1 else "large"]()
    size = sum(param.numel() for param in model.parameters())
    raw = torch.zeros(size)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=1e-3), sync_period=10**9, slow_momentum=0.5
    )
    seconds_of: list[float] = []
    optimizer.register_sync_hook(lambda record: seconds_of.append(record.seconds))
    ratios, raws, syncs = [], [], []
    for turn in range(ROUNDS + 2):
        alone = seconds(lambda: hvd.allreduce_(raw, name="raw", op=hvd.Sum))
        fill_gradients(model)
        optimizer.step()
        seconds(optimizer.flush)  # which then compares what was flushed: not in a sync itself
        sync = seconds_of[-1]
        if turn >= 2:  # the first rounds pay for memory and for Horovod's fusion buffer
            ratios.append(sync / alone)
            raws.append(alone)
            syncs.append(sync)
    if hvd.rank() == 0:
        print(
            f"sync over raw allreduce of {size * 4 / 1e6:.0f} MB, {hvd.size()} ranks: "
            f"{summary(ratios, 'raw', raws)}; a sync {statistics.median(syncs) * 1e3:.0f} ms"
        )


if __name__ == "__main__":
    main()
