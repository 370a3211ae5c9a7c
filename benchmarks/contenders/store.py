"""The results of a run, in one JSON file that is whole after every job."""

import json
import os
import platform
import statistics
from pathlib import Path
from typing import Any

from benchmarks.contenders.jobs import Job

DONE, CANNOT, FAILED = "done", "cannot", "failed"
Record = dict[str, Any]


class Store:
    """The records of the jobs by their keys.

    Args:
        path: of the file.
        resume: whether to go on with one that is there.

    Raises:
        FileExistsError: one is there, and it is not to be gone on with.
        ValueError: it is not one of ours.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self._path = path
        self.records: dict[str, Record] = {}
        if not path.exists():
            return
        if not resume:
            raise FileExistsError(f"{path} is there: give --resume to go on, or another --out")
        self.records = load(path)

    def is_done(self, job: Job) -> bool:
        """Whether there is nothing to do for a job; one that failed is tried again."""
        return self.records.get(job.key, {}).get("state") == DONE

    def add(self, job: Job, record: Record) -> None:
        """Write down what came of a job."""
        self.records[job.key] = record
        whole = {"machine": _machine(), "jobs": self.records}
        unfinished = self._path.with_suffix(".part")
        unfinished.write_text(json.dumps(whole, indent=1))
        unfinished.replace(self._path)

    def learning_rate(self, work: str, contender: str, ranks: int) -> float | None:
        """The one with the lowest final loss so far; None where nothing is known."""
        found: dict[float, list[float]] = {}
        for record in self.records.values():
            job = record["job"]
            which = (job["measure"], job["work"], job["contender"], job["ranks"])
            if which == ("learn", work, contender, ranks) and record["state"] == DONE:
                loss = final_loss(record)
                found.setdefault(job["lr"], []).append(loss if loss == loss else float("inf"))
        return min(found, key=lambda lr: statistics.median(found[lr])) if found else None


def load(path: Path) -> dict[str, Record]:
    """The records of a file.

    Raises:
        ValueError: it is not one of ours.
    """
    try:
        records: dict[str, Record] = json.loads(path.read_text())["jobs"]
        for record in records.values():
            Job(**record["job"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no file of results: {error}") from error
    return records


def final_loss(record: Record) -> float:
    """The workers' mean at the end of a training."""
    return float(statistics.fmean(rank["losses"][-1][2] for rank in record["ranks"]))


def _machine() -> dict[str, Any]:
    return {"system": platform.platform(), "processors": os.cpu_count()}
