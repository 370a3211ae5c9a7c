"""Runs jobs, one after the other, each under horovodrun on hosts of its own."""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from benchmarks.contenders.jobs import PERIOD, SYNC_PERIOD, Job, rounds
from benchmarks.contenders.place import reports
from benchmarks.contenders.store import CANNOT, DONE, FAILED, Record, Store
from benchmarks.contenders.works import work
from benchmarks.network import Network, NetworkError, cleanup

COPIES = 7  # of a model's parameters that a rank may need
START = 60  # seconds that horovodrun may need beside a job's own
TAIL = 2000  # characters of what a failed job has printed


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long a job may be.

    Attributes:
        limit: seconds, after which it is ended.
        steps: of a training that is to learn.
        every: steps from one look at the loss to the next.
    """

    limit: int
    steps: int
    every: int


def run(jobs: Sequence[Job], store: Store, budget: Budget, say: Callable[[str], None]) -> None:
    """Do those jobs that are not done yet; the store has each as soon as it is over.

    A contender that cannot run here is asked once, not once for each job.

    Raises:
        NetworkError: this machine cannot have a network.
    """
    left = [job for job in jobs if not store.is_done(job)]
    if len(left) < len(jobs):
        say(f"{len(jobs) - len(left)} of {len(jobs)} jobs are done already")
    refused: dict[str, Record] = {}
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        sizes = sorted({job.ranks for job in left})
        networks = {size: stack.enter_context(Network(size)) for size in sizes}
        for number, job in enumerate(left, start=1):
            if job.contender in refused:
                record = {**refused[job.contender], "job": dataclasses.asdict(job)}
            else:
                record = run_job(job, networks[job.ranks], budget)
            if record["state"] == CANNOT:
                refused[job.contender] = record
            store.add(job, record)
            spent = time.monotonic() - begin
            to_go = spent / number * (len(left) - number)
            say(
                f"[{number}/{len(left)}] {job}: {in_words(record)}; {_minutes(spent)} so far, "
                f"about {_minutes(to_go)} to go"
            )


def run_job(job: Job, network: Network, budget: Budget) -> Record:
    """Do one job, and say what came of it."""
    record: Record = {"job": dataclasses.asdict(job), "load": os.getloadavg()[0]}
    parameters = work(job.work).parameters
    needs = job.ranks * parameters * 4 * COPIES
    if job.measure == "sync" and needs > psutil.virtual_memory().available:
        return {**record, "state": FAILED, "says": f"it may need {needs / 1e9:.0f} GB of memory"}
    network.set_rate(job.rate)
    folder = cleanup.make_folder(cleanup.name(os.getpid(), 0))  # known for ours if we are killed
    begin, sent = time.monotonic(), [network.bytes_sent(host) for host in network.hosts]
    printed = ""
    try:
        (folder / "job.json").write_text(json.dumps(told(job, budget)))
        command = [sys.executable, "-m", "benchmarks.contenders.worker", str(folder)]
        network.run(command, env={**os.environ, **_ONE_THREAD}, timeout=budget.limit + START)
    except NetworkError as error:
        printed = str(error)
    finally:
        found = reports(folder)
        shutil.rmtree(folder, ignore_errors=True)
    record["seconds"] = time.monotonic() - begin
    after = [network.bytes_sent(host) for host in network.hosts]
    record["bytes"] = [now - before for now, before in zip(after, sent, strict=True)]
    return {**record, **outcome(found, job.ranks, printed)}


_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def told(job: Job, budget: Budget) -> dict[str, Any]:
    """What the ranks of a job are told."""
    return {
        "measure": job.measure,
        "work": job.work,
        "contender": job.contender,
        "period": SYNC_PERIOD if job.measure == "sync" else PERIOD,
        "lr": job.lr,
        "seed": job.repetition,
        "rounds": rounds(job.rate),
        **dataclasses.asdict(budget),
    }


def outcome(found: Sequence[dict[str, Any]], ranks: int, printed: str) -> Record:
    """What the ranks' results and what the job has printed come to."""
    for state, key in ((CANNOT, "cannot"), (FAILED, "error")):
        for result in found:
            if key in result:
                return {"state": state, "says": result[key].strip()}
    if len(found) == ranks:
        return {"state": DONE, "says": "", "ranks": list(found)}
    missing = f"{ranks - len(found)} of {ranks} ranks have left no result"
    return {"state": FAILED, "says": f"{missing}: {printed[-TAIL:].strip()}"}


def in_words(record: Record) -> str:
    """What came of a job, in a few words."""
    if record["state"] != DONE:
        says = record["says"].splitlines()
        return f"{'cannot run' if record['state'] == CANNOT else 'failed'}: {says[-1][:200]}"
    rank = record["ranks"][0]
    if "losses" in rank:
        return f"loss {rank['losses'][-1][2]:.3f}"
    if "periods" in rank:
        return f"{min(rank['periods']):.3f} s for {rank['steps']} steps with a sync"
    return f"{rank['seconds'] / rank['steps']:.3f} s a step"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
