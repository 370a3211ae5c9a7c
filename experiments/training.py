"""One training, from its settings to what is kept of it."""

import itertools
import math
import time
from typing import Any

import torch

from experiments.settings import Run
from experiments.tasks import task as task_of
from experiments.tasks.task import Task, batches, steps_of
from experiments.virtual_workers import VirtualWorkers


def train(run: Run) -> dict[str, Any]:
    """Train, and return what was seen, as JSON has it; a loss that is not finite ends it early."""
    begin = time.perf_counter()
    setting, task = run.setting, task_of(run.setting.task)
    batch = setting.batch_factor * task.batch
    steps = task.epochs * steps_of(task, setting.workers, batch)
    torch.manual_seed(run.seed)
    workers = VirtualWorkers(
        task.model(),
        setting.workers,
        task.loss,
        task.inner,
        setting.config(run.lr, steps),
        scaled=setting.scaled,
    )
    stream = itertools.chain.from_iterable(
        batches(task, run.seed, epoch, setting.workers, batch) for epoch in range(task.epochs)
    )
    looks: list[dict[str, float]] = []
    sound = True
    for step, indices in enumerate(stream, 1):
        losses = workers.step(task.examples(indices), run.lr * task.factor((step - 1) / steps))
        if step * task.looks // steps == len(looks):
            continue
        if step == steps:
            workers.flush()
        seen = task.look(workers.mean())
        sound = bool(losses.isfinite().all()) and all(map(math.isfinite, seen.values()))
        if not sound:
            break
        looks.append({"step": step, "syncs": workers.syncs} | seen)
    return {
        "steps": steps,
        "diverged": not sound,
        "looks": looks,
        "test": task.test(workers.mean()) if sound else {},
        "seconds": round(time.perf_counter() - begin, 1),
        "torch": torch.__version__,
    } | about(task)


def about(task: Task) -> dict[str, Any]:
    """All that a figure depends on beyond the settings."""
    return {
        "epochs": task.epochs,
        "batch": task.batch,
        "parameters": sum(weight.numel() for weight in task.model().parameters()),
        "data": task.digest,
    }
