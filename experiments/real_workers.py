"""One of m real workers under horovodrun, with the surface of `VirtualWorkers`.

``horovodrun --gloo -np 4 python -m experiments.real_workers`` trains both ways on Fashion-MNIST, in
float64, and prints how far apart they end.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Mapping

import horovod.torch
import torch
from torch import Tensor, nn

import slowmo_hvd.torch as hvd
from experiments.settings import Setting
from experiments.tasks import task as task_of
from experiments.tasks.task import Batch, Task, batches
from experiments.virtual_workers import Inner, Loss, VirtualWorkers
from slowmo_hvd.core.config import SlowMoConfig


class RealWorker:
    """This rank's.

    Args:
        model: the same on every rank; it is trained.
        loss: ``loss(forward, batch)``, the mean of a worker's batch.
        inner: makes the base optimizer from parameters and a learning rate.
        config: SlowMo's; None for Horovod's own optimizer, which averages gradients in every step.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, inner: Inner, config: SlowMoConfig | None
    ) -> None:
        self._model, self._loss, self._config = model, loss, config
        base, named = inner(model.parameters(), 0.0), model.named_parameters()
        if config is None:
            self._optimizer = horovod.torch.DistributedOptimizer(base, named_parameters=named)
        else:
            settings = {of.name: getattr(config, of.name) for of in dataclasses.fields(config)}
            self._optimizer = hvd.DistributedOptimizer(base, named_parameters=named, **settings)

    def step(self, batch: Batch, lr: float) -> None:
        """One local step, and the sync if one is due; a batch is tensors of (batch, ...)."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad()
        self._loss(self._model, batch).backward()
        self._optimizer.step()

    def flush(self) -> None:
        """End the window early, and average the running statistics."""
        if self._config is not None:
            self._optimizer.flush(self._model)


def compare(
    task: Task, setting: Setting, *, lr: float, steps: int, dtype: torch.dtype
) -> dict[str, float]:
    """Train both ways, and return the largest difference of each tensor of the models at the end.

    A collective. Of gradient averaging, whose running statistics nobody averages, the weights.

    Args:
        task: what to train on.
        setting: how; its number of workers is that of the ranks.
        lr: the peak learning rate.
        steps: local steps.
        dtype: of the weights.

    Raises:
        ValueError: there are more or fewer ranks.
    """
    if setting.workers != hvd.size():
        raise ValueError(f"there are {hvd.size()} ranks for {setting.workers} workers")
    torch.manual_seed(0)
    start, config = task.model().to(dtype), setting.config(lr, steps)
    virtual = VirtualWorkers(start, setting.workers, task.loss, task.inner, config)
    model = task.model().to(dtype)
    model.load_state_dict(start.state_dict())
    real = RealWorker(model, task.loss, task.inner, config)
    epochs = (batches(task, 0, epoch, setting.workers, task.batch) for epoch in itertools.count())
    for step, indices in enumerate(itertools.islice(itertools.chain.from_iterable(epochs), steps)):
        rate = lr * task.factor(step / steps)
        virtual.step(_as(dtype, task.examples(indices)), rate)
        real.step(_as(dtype, task.examples(indices[hvd.rank()])), rate)
    virtual.flush()
    real.flush()
    ours: Mapping[str, Tensor] = virtual.mean().state_dict()
    names = dict(model.named_parameters()) if config is None else model.state_dict()
    return {
        name: (ours[name] - model.state_dict()[name]).abs().max().item()
        for name in names
        if ours[name].is_floating_point()
    }


def _as(dtype: torch.dtype, batch: Batch) -> Batch:
    return tuple(part.to(dtype) if part.is_floating_point() else part for part in batch)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.real_workers",
        description="Train with real and with virtual workers, and compare; under horovodrun.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--task", default="fashion")
    parser.add_argument("--steps", type=int, default=120, help="local steps")
    args = parser.parse_args()
    hvd.init()
    torch.set_num_threads(1)
    m = hvd.size()
    task = task_of(args.task)
    for setting in (
        Setting(args.task, "averaging", m, 1),
        Setting(args.task, "slowmo", m, 12, 0.4),
    ):
        found = compare(task, setting, lr=task.middle, steps=args.steps, dtype=torch.float64)
        if hvd.rank() == 0:
            apart = max(found.values())
            print(f"{setting.method}, m = {m}, {args.steps} steps: {apart:.1e}", flush=True)


if __name__ == "__main__":
    main()
