"""The time of one sync over one raw in-place allreduce of as many bytes.

Run by ``horovodrun -np 2 python -m benchmarks.sync_time``, or with ``tiny`` for many small tensors.
All is measured in turns in one run, since the machine's speed changes from minute to minute; the
median of the ratios counts. What a processor cannot do without is told too: the same allreduce, a
copy of the parameters before it, and after it one pass over sum, anchor and momentum, which writes
anchor, momentum and parameters.
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
_IN_CACHE = 2**16  # elements


def seconds(work: Callable[[], object]) -> float:
    """The time that ``work`` takes on all ranks, begun together."""
    hvd.barrier()
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


class Least:
    """An allreduce with the fewest passes over memory that any outer step makes.

    Args:
        size: elements.
    """

    def __init__(self, size: int) -> None:
        self._wire, *rest = (torch.zeros(size) for _ in range(4))
        self._slices = [
            [flat[at : at + _IN_CACHE] for flat in (self._wire, *rest)]
            for at in range(0, size, _IN_CACHE)
        ]

    def __call__(self) -> None:
        """Do it."""
        for wire, _, _, numbers in self._slices:
            wire.copy_(numbers)
        hvd.allreduce_(self._wire, name="least", op=hvd.Sum)
        for wire, anchor, momentum, numbers in self._slices:
            anchor.sub_(wire)
            momentum.add_(anchor)
            anchor.add_(wire)
            numbers.copy_(anchor)


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
    least = Least(size)
    ratios, leasts, raws, syncs = [], [], [], []
    for turn in range(ROUNDS + 2):
        alone = seconds(lambda: hvd.allreduce_(raw, name="raw", op=hvd.Sum))
        with_passes = seconds(least)
        fill_gradients(model)
        optimizer.step()
        seconds(optimizer.flush)  # which then compares what was flushed: not in a sync itself
        sync = seconds_of[-1]
        if turn >= 2:  # the first rounds pay for memory and for Horovod's fusion buffer
            ratios.append(sync / alone)
            leasts.append(with_passes / alone)
            raws.append(alone)
            syncs.append(sync)
    if hvd.rank() == 0:
        print(
            f"sync over raw allreduce of {size * 4 / 1e6:.0f} MB, {hvd.size()} ranks: "
            f"{summary(ratios, 'raw', raws)}; a sync {statistics.median(syncs) * 1e3:.0f} ms\n"
            f"the fewest passes over raw allreduce: {summary(leasts, 'raw', raws)}"
        )


if __name__ == "__main__":
    main()
