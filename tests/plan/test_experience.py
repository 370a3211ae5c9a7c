"""What the planner says of slow momentum is what the kept runs of the experiments say."""

import statistics

import pytest
from launch import ROOT

from experiments.report import finished, values
from experiments.store import Store
from experiments.tables import SEEDS, TABLES, Column
from slowmo_hvd.plan.experience import LEARNT, Learnt, nearest

SELECTS, MEASURED = Column("validation loss"), Column("test accuracy")


def from_the_runs(workers: int) -> Learnt:
    table, store = TABLES["fashion.workers"], Store(ROOT / "experiments" / "results")
    rows = {
        table.rows[name].slow_momentum: runs
        for name, runs in finished(table, store, SEEDS).items()
        if table.rows[name].workers == workers
    }
    loss, accuracy = (
        {beta: statistics.mean(values(store, runs, column)) for beta, runs in rows.items()}
        for column in (SELECTS, MEASURED)
    )
    best = min(loss, key=loss.__getitem__)
    return Learnt(workers, best, round(accuracy[best], 2), round(accuracy[0.0], 2))


@pytest.mark.parametrize("learnt", LEARNT, ids=lambda learnt: f"{learnt.workers} workers")
def test_the_figures_are_those_of_the_kept_runs(learnt: Learnt) -> None:
    assert learnt == from_the_runs(learnt.workers)


def test_the_nearest_count_is_the_nearest_by_ratio() -> None:
    assert [nearest(m).workers for m in (2, 3, 5, 6, 1024)] == [2, 4, 4, 8, 32]
