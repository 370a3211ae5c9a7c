"""The figures that a run's records come to: medians over the repetitions, and their spread."""

import dataclasses
import itertools
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.contenders.registry import CONTENDERS, RAW
from benchmarks.contenders.store import DONE, Record, final_loss
from benchmarks.contenders.works import work

Cell = tuple[str, int, str, str]  # work, ranks, rate, contender


@dataclasses.dataclass(frozen=True)
class Spread:
    """A figure of several repetitions."""

    median: float
    low: float
    high: float
    count: int


def spread(values: Iterable[float]) -> Spread | None:
    """Of the values; None where there is none."""
    found = list(values)
    if not found:
        return None
    return Spread(statistics.median(found), min(found), max(found), len(found))


class Figures:
    """What can be asked of the records.

    Args:
        records: of a run's jobs, by their keys.
    """

    def __init__(self, records: Mapping[str, Record]) -> None:
        self._done: dict[str, dict[Cell, dict[int, Record]]] = {}
        self.failures: dict[tuple[str, str], list[str]] = {}
        for record in records.values():
            job = record["job"]
            if record["state"] == DONE:
                cell = (job["work"], job["ranks"], job["rate"], job["contender"])
                cells = self._done.setdefault(job["measure"], {})
                if job["measure"] != "learn":
                    cells.setdefault(cell, {})[job["repetition"]] = record
            else:
                says = (record["says"].splitlines() or ["no reason given"])[-1]
                where = f"{job['measure']} {job['work']}, {job['ranks']} ranks, {job['rate']}"
                self.failures.setdefault((job["contender"], says), []).append(where)
        self._learnt = _learnt(records.values())

    def cells(self, measure: str) -> list[Cell]:
        """What was measured so, in the order of the contenders."""
        order = list(CONTENDERS)
        return sorted(
            self._done.get(measure, {}), key=lambda cell: (cell[:2], order.index(cell[3]))
        )

    def works(self, measure: str) -> list[tuple[str, int]]:
        """The works and numbers of ranks."""
        return list(dict.fromkeys(cell[:2] for cell in self.cells(measure)))

    def step_seconds(self, cell: Cell) -> Spread | None:
        """Of a training step, as the slowest rank sees it."""
        return spread(_step_seconds(record) for record in self._of("speed", cell).values())

    def throughput(self, cell: Cell) -> Spread | None:
        """Over that of workers by themselves, in the same repetition."""
        alone = self._of("speed", _baseline(cell))
        found = self._of("speed", cell)
        return spread(
            _step_seconds(alone[number]) / _step_seconds(found[number])
            for number in found
            if number in alone
        )

    def step_bytes(self, cell: Cell) -> Spread | None:
        """Sent by a worker's interface in each step."""
        return spread(
            statistics.fmean(rank["bytes"] / rank["steps"] for rank in record["ranks"])
            for record in self._of("speed", cell).values()
        )

    def extra_memory(self, cell: Cell) -> Spread | None:
        """More than that of a worker by itself, at the peak, in units of the parameters."""
        alone = self._of("speed", _baseline(cell))
        size = 4 * work(cell[0]).parameters
        found = self._of("speed", cell)
        return spread(
            (_peak(found[number]) - _peak(alone[number])) / size
            for number in found
            if number in alone
        )

    def sync_seconds(self, cell: Cell) -> Spread | None:
        """By the contender's own record; without one, what the sync adds to the steps."""
        found = self._of("sync", cell)
        return spread(
            value
            for number, record in found.items()
            if (value := self._sync_seconds(cell, number, record)) is not None
        )

    def sync_ratio(self, cell: Cell) -> Spread | None:
        """The same over a raw allreduce: one in the same process, or else in the same turn."""
        found = self._of("sync", cell)
        return spread(
            seconds / raw
            for number, record in found.items()
            if (seconds := self._sync_seconds(cell, number, record)) is not None
            and (raw := self._raw(cell, number, record)) is not None
        )

    def stall_ratio(self, cell: Cell) -> Spread | None:
        """What a sync adds to the steps, over a raw allreduce."""
        return spread(
            seconds / raw
            for number, record in self._of("sync", cell).items()
            if (seconds := self._stall(cell, number, record)) is not None
            and (raw := self._raw(cell, number, record)) is not None
        )

    def sync_bytes(self, cell: Cell) -> Spread | None:
        """Sent by a worker's interface for each sync."""
        return spread(
            statistics.fmean(rank["bytes"] for rank in record["ranks"])
            for record in self._of("sync", cell).values()
        )

    def learnt(self) -> dict[tuple[str, int, str], list[Record]]:
        """The trainings by work, ranks and contender, each at its best learning rate."""
        return self._learnt

    def target_seconds(self, cell: Cell, steps: float) -> float | None:
        """The time of so many steps, by what a step was measured to take there."""
        seconds = self.step_seconds(cell)
        return None if seconds is None else steps * seconds.median

    def _of(self, measure: str, cell: Cell) -> dict[int, Record]:
        return self._done.get(measure, {}).get(cell, {})

    def _sync_seconds(self, cell: Cell, number: int, record: Record) -> float | None:
        if any(rank["syncs"] for rank in record["ranks"]):
            return _slowest(record, "syncs")
        return self._stall(cell, number, record)

    def _stall(self, cell: Cell, number: int, record: Record) -> float | None:
        if cell[3] == RAW:
            return _slowest(record, "periods")
        alone = self._of("sync", _baseline(cell)).get(number)
        if alone is None:
            return None
        steps = record["ranks"][0]["steps"]
        return _slowest(record, "periods") - int(steps) * _slowest(alone, "periods")

    def _raw(self, cell: Cell, number: int, record: Record) -> float | None:
        if any(rank["raws"] for rank in record["ranks"]):
            return _slowest(record, "raws")
        raw = self._of("sync", (*cell[:3], RAW)).get(number)
        return None if raw is None else _slowest(raw, "periods")


def curve(record: Record) -> list[tuple[int, float, float]]:
    """Step, seconds so far and the workers' mean loss."""
    ranks: list[list[Any]] = [rank["losses"] for rank in record["ranks"]]
    return [
        (looks[0][0], max(look[1] for look in looks), statistics.fmean(look[2] for look in looks))
        for looks in zip(*ranks, strict=True)
    ]


def steps_to(record: Record, target: float) -> float | None:
    """The step at which the loss first came to the target, on a line from one look to the next."""
    for (before, _, high), (step, _, low) in itertools.pairwise(curve(record)):
        if high <= target:
            return before
        if low <= target:
            return before + (step - before) * (high - target) / (high - low)
    return None


def _learnt(records: Iterable[Record]) -> dict[tuple[str, int, str], list[Record]]:
    found: dict[tuple[str, int, str], dict[float, list[Record]]] = {}
    for record in records:
        job = record["job"]
        if job["measure"] == "learn" and record["state"] == DONE:
            key = (job["work"], job["ranks"], job["contender"])
            found.setdefault(key, {}).setdefault(job["lr"], []).append(record)
    order = list(CONTENDERS)
    return {
        key: min(found[key].values(), key=_middle_loss)
        for key in sorted(found, key=lambda key: (key[:2], order.index(key[2])))
    }


def _middle_loss(records: list[Record]) -> float:
    losses = map(final_loss, records)
    return statistics.median(loss if loss == loss else float("inf") for loss in losses)


def _baseline(cell: Cell) -> Cell:
    return (*cell[:3], CONTENDERS[cell[3]].baseline)


def _slowest(record: Record, name: str) -> float:
    return float(max(statistics.median(rank[name]) for rank in record["ranks"] if rank[name]))


def _step_seconds(record: Record) -> float:
    return float(max(rank["seconds"] / rank["steps"] for rank in record["ranks"]))


def _peak(record: Record) -> float:
    return float(statistics.median(rank["peak"] for rank in record["ranks"]))
