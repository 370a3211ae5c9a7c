"""What the loggers write of a record, and which rank writes it."""

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slowmo_hvd.core import loggers
from slowmo_hvd.core.records import SyncRecord
from slowmo_hvd.core.schedule import Sync

RECORD = SyncRecord(
    kind=Sync.WINDOW,
    step=24,
    window=1,
    workers=3,
    learning_rates=(0.1, -0.2),
    bytes=400,
    seconds=0.5,
    displacement_norm=2.0,
    drift=3.0,
    excluded=(1, 3),
    outliers=(3,),
    sync_period=12,
)


@dataclasses.dataclass
class ProcessSet:
    of: int  #: this process's rank in it; -1 where it is not in it

    def included(self) -> bool:
        return self.of >= 0

    def rank(self) -> int:
        return self.of


class Optimizer:
    """What a logger uses of one."""

    def __init__(self, rank: int = 0) -> None:
        self.process_set = ProcessSet(rank)
        self.hooks: list[Callable[[SyncRecord], None]] = []

    def register_sync_hook(self, hook: Callable[[SyncRecord], None]) -> str:
        self.hooks.append(hook)
        return "handle"

    def sync(self, record: SyncRecord = RECORD) -> None:
        for hook in self.hooks:
            hook(record)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_has_the_figures_and_the_ranks_that_were_left_out(tmp_path: Path) -> None:
    optimizer, path = Optimizer(), tmp_path / "syncs.csv"
    assert loggers.csv(optimizer, path) == "handle"
    optimizer.sync()
    (row,) = rows(path)
    expected = {"step": "24", "window": "1", "kind": "window", "drift": "3.0", "bytes": "400"}
    expected |= {"drift_ratio": "1.5", "learning_rate": "-0.2", "excluded": "2", "outliers": "1"}
    assert row | expected == row
    assert row["excluded_ranks"] == "1 3"


def test_a_resumed_run_goes_on_in_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "syncs.csv"
    for step in (12, 24):
        optimizer = Optimizer()
        loggers.csv(optimizer, path)
        optimizer.sync(dataclasses.replace(RECORD, step=step))
    assert [row["step"] for row in rows(path)] == ["12", "24"]


def test_a_file_of_another_kind_is_left_alone_and_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="is there and has the columns a, b: give another path"):
        loggers.csv(Optimizer(), path)
    assert path.read_text() == "a,b\n1,2\n"


def test_a_path_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    for logger in (loggers.csv, loggers.json_lines):
        with pytest.raises(OSError, match="nowhere"):
            logger(Optimizer(), tmp_path / "nowhere" / "syncs")


def test_lines_of_json_are_whole_records(tmp_path: Path) -> None:
    optimizer, path = Optimizer(), tmp_path / "syncs.jsonl"
    loggers.json_lines(optimizer, path)
    optimizer.sync()
    optimizer.sync()
    assert (
        list(map(json.loads, path.read_text().splitlines()))
        == [json.loads(json.dumps(RECORD.asdict()))] * 2
    )


def test_where_nothing_has_moved_the_ratio_is_0(tmp_path: Path) -> None:
    still = dataclasses.replace(RECORD, displacement_norm=0.0, learning_rates=())
    assert loggers.named(still)["slowmo/drift_ratio"] == 0.0
    assert loggers.named(still)["slowmo/learning_rate"] == 0.0


@pytest.mark.parametrize("rank", [1, -1])
def test_other_ranks_make_no_file(rank: int, tmp_path: Path) -> None:
    optimizer, path = Optimizer(rank), tmp_path / "syncs.csv"
    loggers.csv(optimizer, path)
    optimizer.sync()
    assert not path.exists()


def test_a_rank_that_has_become_the_first_one_writes_from_then_on(tmp_path: Path) -> None:
    """In elastic training, where rank 0 was lost."""
    optimizer, path = Optimizer(1), tmp_path / "syncs.csv"
    loggers.csv(optimizer, path)
    optimizer.sync()
    optimizer.process_set.of = 0
    optimizer.sync()
    assert len(rows(path)) == 1


class Run:
    """What a logger uses of a run of Weights & Biases."""

    def __init__(self) -> None:
        self.metrics: list[tuple[str, Any]] = []
        self.logged: list[dict[str, float]] = []

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, values: dict[str, float]) -> None:
        self.logged.append(values)


def test_a_run_of_wandb_draws_over_the_local_steps() -> None:
    optimizer, run = Optimizer(), Run()
    loggers.wandb(optimizer, run)
    optimizer.sync()
    assert run.metrics == [("slowmo/step", None), ("slowmo/*", "slowmo/step")]
    assert [(each["slowmo/step"], each["slowmo/drift"]) for each in run.logged] == [(24, 3.0)]
