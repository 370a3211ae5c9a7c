"""``python -m experiments TABLE``: make the trainings that a table lacks, and print it."""

import argparse
import concurrent.futures
import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from experiments.data.fetching import DataError
from experiments.plots import draw
from experiments.report import into, markdown
from experiments.settings import Run
from experiments.store import RESULTS, Store, StoreError
from experiments.tables import SEEDS, TABLES, Table
from experiments.tasks import TASKS
from experiments.tasks import task as task_of
from experiments.training import about, train
from experiments.tuning import SEED, chosen_rate, next_rates, tried_rates

DOCS = Path(__file__).parent.parent / "docs"


def missing(table: Table, store: Store, seeds: int) -> Iterator[Run]:
    """The runs that can be made now: of each row the learning rate's search, then the seeds."""
    for setting in table.rows.values():
        task, rate = TASKS[setting.task], chosen_rate(setting, store)
        if rate is None:
            rates = next_rates(task.rates, task.middle, tried_rates(setting, store))
            runs = [Run(setting, rate, SEED) for rate in rates]
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


def write_docs(store: Store, seeds: int) -> None:
    """Put all tables into docs/experiments.md, and their plots beside it."""
    page = DOCS / "experiments.md"
    tables = {name: markdown(table, store, seeds) for name, table in TABLES.items()}
    page.write_text(into(page.read_text(), tables))
    for name, table in TABLES.items():
        draw(table, store, seeds, DOCS / "images" / f"{name.replace('.', '-')}.png")


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


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description="Make the trainings that a table lacks, and print the table. It can be "
        "interrupted: what is done is kept.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--processes", type=int, default=2, help="trainings at a time")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of each row")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the runs are kept")
    parser.add_argument("--show", action="store_true", help="train nothing, print what is there")
    parser.add_argument("--docs", action="store_true", help="put tables and plots into docs/")
    args = parser.parse_args()
    strange = sorted(set(args.tables) - set(TABLES))
    if strange:
        parser.error(f"there is no table {strange[0]}: {', '.join(TABLES)}")
    try:
        store = Store(args.results)
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(
            args.processes, context, torch.set_num_threads, (1,)
        ) as pool:
            for name in args.tables or TABLES:
                if not args.show:
                    make(TABLES[name], store, args.seeds, pool, args.processes)
                print(markdown(TABLES[name], store, args.seeds), flush=True)
        if args.docs:
            write_docs(store, args.seeds)
    except (DataError, StoreError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
