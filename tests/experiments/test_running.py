"""A table is made run by run, can be interrupted, and goes on with what it lacks."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from small_task import Small

from experiments import tasks
from experiments.making import make, missing
from experiments.report import markdown
from experiments.settings import Run, Setting
from experiments.store import Store
from experiments.tables import Table
from experiments.tasks.task import batches
from experiments.training import train

TABLE = Table(
    "small",
    {
        "averaging": Setting("small", "averaging", 2, 1),
        "local": Setting("small", "slowmo", 2, 3),
        "one": Setting("small", "snoo", 1, 3, 0.9, batch_factor=2),
    },
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tasks.TASKS, "small", Small)
    tasks.task.cache_clear()


@pytest.mark.usefixtures("small")
def test_a_table_goes_on_where_it_was_interrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        store = Store(tmp_path)
        assert len(list(missing(TABLE, store, 2))) == 9  # three learning rates for each
        make(TABLE, store, 2, pool, 1)
        lines = (tmp_path / "small.jsonl").read_text().splitlines(keepends=True)
        told = capsys.readouterr().out.splitlines()
        assert len(told) == len(lines)
        assert "averaging m=2" in told[0]
        assert "not yet" not in markdown(TABLE, store, 2)

        (tmp_path / "small.jsonl").write_text("".join(lines[:-2]))  # interrupted there
        resumed = Store(tmp_path)
        assert len(list(missing(TABLE, resumed, 2))) > 0
        make(TABLE, resumed, 2, pool, 1)
        assert len(capsys.readouterr().out.splitlines()) == 2
        assert markdown(TABLE, resumed, 2) == markdown(TABLE, store, 2)


@pytest.mark.usefixtures("small")
def test_losses_are_measured_evenly_over_a_training() -> None:
    result = train(Run(TABLE.rows["local"], 0.02, 0))
    assert [look["step"] for look in result["looks"]] == [15, 30, 45, 60]
    assert [look["syncs"] for look in result["looks"]] == [5, 10, 15, 20]  # τ = 3
    assert not result["diverged"]


@pytest.mark.usefixtures("small")
def test_a_training_that_diverges_keeps_what_it_measured_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Small, "factor", lambda self, progress: 1e38 if progress >= 0.5 else 1)
    result = train(Run(TABLE.rows["local"], 0.02, 0))
    assert result["diverged"]
    assert [look["step"] for look in result["looks"]] == [15, 30]
    assert result["test"] == {}


@pytest.mark.parametrize("lengths", [None, torch.arange(240) % 7])
def test_workers_share_an_epoch_out_without_overlap(lengths: torch.Tensor | None) -> None:
    task = Small("SGD")
    task.lengths = lengths
    steps = list(batches(task, 3, 1, 4, 16))
    assert [tuple(step.shape) for step in steps] == [(4, 16)] * 3
    assert len(torch.cat([step.flatten() for step in steps]).unique()) == 3 * 4 * 16
    again = batches(task, 3, 1, 4, 16)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(steps, again, strict=True))
    assert not torch.equal(steps[0], next(batches(task, 3, 2, 4, 16)))
    if lengths is not None:  # a step's examples are about equally long, and steps in any order
        spans = [lengths[step].max() - lengths[step].min() for step in steps]
        assert max(spans) <= 3
