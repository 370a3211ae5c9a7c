"""What the planner says of slow momentum is what the kept runs of the experiments say."""

from statistics import mean

from launch import ROOT

from experiments.report import finished, values
from experiments.store import Store
from experiments.tables import SEEDS, TABLES, WORKERS, Column
from slowmo_hvd.plan.experience import LEARNT, Learnt, nearest

SELECTS, MEASURED = Column("validation loss"), Column("test accuracy")


def from_the_runs() -> tuple[Learnt, ...]:
    table, store = TABLES["fashion.workers"], Store(ROOT / "experiments" / "results")
    runs_of = finished(table, store, SEEDS)
    loss, accuracy = (
        {table.rows[name]: mean(values(store, runs, column)) for name, runs in runs_of.items()}
        for column in (SELECTS, MEASURED)
    )
    found = []
    for workers in WORKERS:
        rows = [row for row in table.rows.values() if row.workers == workers]
        best = min(rows, key=loss.__getitem__)
        (without,) = (row for row in rows if row.slow_momentum == 0)
        accuracies = (round(accuracy[row], 2) for row in (best, without))
        found.append(Learnt(workers, best.slow_momentum, *accuracies))
    return tuple(found)


def test_the_figures_are_those_of_the_kept_runs() -> None:
    assert from_the_runs() == LEARNT


def test_the_nearest_count_is_the_nearest_by_ratio() -> None:
    assert [nearest(m).workers for m in (2, 3, 5, 6, 1024)] == [2, 4, 4, 8, 32]
