"""The time of a step between syncs over the same step of the bare optimizer.

Run by ``horovodrun -np 2 python -m benchmarks.step_overhead``, or with ``tiny`` for many small
tensors. The two take turns on models of
equal size, so that both see the same machine; the median of the pairwise ratios counts.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch

import slowmo_hvd.torch as hvd
from benchmarks.models import MODELS, fill_gradients

PAIRS = 60
INNERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD with momentum": lambda params: torch.optim.SGD(params, lr=1e-3, momentum=0.9),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1e-3),
}


def seconds(step: Callable[[], object]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def measure(make: Callable[..., torch.optim.Optimizer]) -> list[float]:
    """The ratios of neighbouring steps, wrapped over bare; which goes first alternates."""
    made = MODELS[sys.argv[1] if len(sys.argv) > 1 else "large"]
    models = made(), made()
    for model in models:
        fill_gradients(model)
    bare = make(models[0].parameters())
    wrapped = hvd.DistributedOptimizer(make(models[1].parameters()), sync_period=10**9)
    ratios = []
    for turn in range(PAIRS + 4):
        order = (bare, wrapped) if turn % 2 else (wrapped, bare)
        times = {optimizer: seconds(optimizer.step) for optimizer in order}
        if turn >= 4:  # the first steps allocate state and agree on a start
            ratios.append(times[wrapped] / times[bare])
    return ratios


def main() -> None:
    hvd.init()
    torch.set_num_threads(1)
    for name, make in INNERS.items():
        ratios = measure(make)
        if hvd.rank() == 0:
            low, median, high = statistics.quantiles(ratios, n=4)
            print(
                f"step between syncs over bare {name}, {hvd.size()} ranks: median ratio "
                f"{median:.3f} (quartiles {low:.3f} to {high:.3f}, {PAIRS} pairs)",
                flush=True,
            )


if __name__ == "__main__":
    main()
