"""Make the trainings that a table lacks, some at a time."""

import concurrent.futures
import multiprocessing
import signal
import time
from collections.abc import Iterator
from typing import Any

import torch

from experiments.settings import Run
from experiments.store import Store
from experiments.tables import Table
from experiments.tasks import task as task_of
from experiments.training import about, train
from experiments.tuning import SEED, chosen_rate, lacking_rates


def pool_of(processes: int) -> concurrent.futures.Executor:
    """Processes that train, each on one core."""
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(processes, context, _begin)


def _begin() -> None:
    """In each process of the pool."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that waits for them


def missing(table: Table, store: Store, seeds: int) -> Iterator[Run]:
    """The runs that can be made now: of each row the learning rate's search, then the seeds."""
    for setting in table.rows.values():
        rate = chosen_rate(setting, store)
        if rate is None:
            runs = [Run(setting, rate, SEED) for rate in lacking_rates(setting, store)]
        else:
            runs = [Run(setting, rate, seed) for seed in range(seeds)]
        yield from (run for run in runs if run not in store)


def make(
    table: Table, store: Store, seeds: int, pool: concurrent.futures.Executor, at_once: int
) -> None:
    """Make all runs that the table lacks, some at a time; each is kept as soon as it is done."""
    for name in {setting.task for setting in table.rows.values()}:
        store.check(name, about(task_of(name)))
    begin, done = time.monotonic(), 0
    going: dict[concurrent.futures.Future[dict[str, Any]], Run] = {}
    while True:
        for run in missing(table, store, seeds):
            if len(going) < at_once and run not in going.values():
                going[pool.submit(train, run)] = run
        if not going:
            return
        finished, _ = concurrent.futures.wait(going, return_when=concurrent.futures.FIRST_COMPLETED)
        for future in finished:
            run, result = going.pop(future), future.result()
            store.add(run, result)
            done += 1
            _tell(run, result, done, time.monotonic() - begin)


def _tell(run: Run, result: dict[str, Any], done: int, seconds: float) -> None:
    setting = run.setting
    last = "diverged"
    if not result["diverged"]:
        figures = {**result["looks"][-1], **result["test"]}
        last = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    print(
        f"{done:4} in {seconds / 60:.1f} min: {setting.method} m={setting.workers} "
        f"τ={setting.sync_period} β={setting.slow_momentum:g} {setting.buffers}, lr={run.lr:g}, "
        f"seed {run.seed}: {last} ({result['seconds']} s)",
        flush=True,
    )
