"""The time of ``hvd.broadcast_optimizer_state`` over that of Horovod's own for as many bytes.

Run by ``horovodrun -np 2 python -m benchmarks.broadcast_time``, with the cycle time in milliseconds
as an argument where it is not Horovod's default. Around Adam, SlowMo has two more tensors for every
parameter; so Horovod's gets an Adam of twice as many parameters. Both are measured in turns in one
run, and the median of the ratios counts.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import horovod.torch
import torch

import slowmo_hvd.torch as hvd
from benchmarks.ratios import summary
from benchmarks.sync_time import seconds

SIZES = {"500 of 4 KB": (500, 2**10), "500 of 64 KB": (500, 2**14), "4 of 32 MB": (4, 2**23)}
ROUNDS = 7


def adam(tensors: int, elements: int) -> torch.optim.Adam:
    """Adam over so many parameters."""
    return torch.optim.Adam([torch.zeros(elements, requires_grad=True) for _ in range(tensors)])


def step(optimizer: torch.optim.Optimizer) -> None:
    """One step, so that the state is full."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.zeros_like(param)
    optimizer.step()


def everywhere(broadcast: Callable[[torch.optim.Optimizer, int], None], optimizer: Any) -> float:
    """The seconds until the last rank has the state."""

    def work() -> None:
        broadcast(optimizer, 0)
        hvd.barrier()

    return seconds(work)


def main() -> None:
    if len(sys.argv) > 1:
        os.environ["HOROVOD_CYCLE_TIME"] = sys.argv[1]
    hvd.init()
    torch.set_num_threads(1)
    for name, (tensors, elements) in SIZES.items():
        plain = adam(2 * tensors, elements)
        ours = hvd.DistributedOptimizer(adam(tensors, elements))
        step(plain)
        step(ours)
        ratios, plains = [], []
        for turn in range(ROUNDS + 1):
            horovods = everywhere(horovod.torch.broadcast_optimizer_state, plain)
            slowmos = everywhere(hvd.broadcast_optimizer_state, ours)
            if turn >= 1:  # the first round pays for memory
                ratios.append(slowmos / horovods)
                plains.append(horovods)
        if hvd.rank() == 0:
            print(
                f"broadcast of Adam's state over Horovod's, parameters: {name}, "
                f"{hvd.size()} ranks: " + summary(ratios, "Horovod's", plains),
                flush=True,
            )


if __name__ == "__main__":
    main()
