"""One training, from its settings to what is kept of it."""

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
    an_epoch = steps_of(task, setting.workers, batch)
    steps = task.epochs * an_epoch
    torch.manual_seed(run.seed)
    workers = VirtualWorkers(
        task.model(),
        setting.workers,
        task.loss,
        task.inner,
        setting.config(run.lr, steps),
        scaled=setting.scaled,
    )
    looks, step = [], 0
    for epoch in range(task.epochs):
        for indices in batches(task, run.seed, epoch, setting.workers, batch):
            losses = workers.step(task.examples(indices), run.lr * task.factor(step / steps))
            step += 1
        sound = bool(losses.isfinite().all())
        if epoch == task.epochs - 1:
            workers.flush()
        if sound:
            seen = task.look(workers.mean())
            sound = all(map(math.isfinite, seen.values()))
            looks.append({"step": step, "syncs": workers.syncs} | seen)
        if not sound:
            break
    return {
        "steps": steps,
        "diverged": not sound,
        "looks": looks if sound else looks[:-1],
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
