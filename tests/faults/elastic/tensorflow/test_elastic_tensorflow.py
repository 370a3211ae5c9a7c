"""Elastic Keras training survives what happens to its workers."""

import pytest
from faults.elastic.cluster import IDLE, run
from faults.elastic.plan import Kill, Plan


@pytest.mark.limit(IDLE + 10)
def test_a_worker_lost_inside_a_window_and_the_root_lost_in_a_sync_lose_no_commit() -> None:
    kills = (Kill("inside a window", 6, 1), Kill("between a sync's buckets", 16, 0))
    report = run("tensorflow", Plan(kills=kills, sizes={12: 3}))
    assert report.problems() == [], report.output


@pytest.mark.limit(IDLE + 10)
@pytest.mark.parametrize("fragments", [1, pytest.param(2, marks=pytest.mark.only_all_cases)])
def test_workers_lost_and_come_while_an_average_is_under_way_lose_no_commit(fragments: int) -> None:
    """Commits are made with an average under way: those after steps 6, 12 and 18."""
    kills = (Kill("between a sync's buckets", 8, 1), Kill("inside a window", 17, 0))
    plan = Plan(kills=kills, sizes={12: 3}, commit_every=6, overlap_steps=3, fragments=fragments)
    report = run("tensorflow", plan)
    assert report.problems() == [], report.output


@pytest.mark.limit(IDLE + 10)
def test_with_fit_workers_come_and_go_inside_a_window() -> None:
    report = run("tensorflow", Plan(sizes={6: 4, 14: 3}, fit=True))
    assert report.problems() == [], report.output
    assert report.sizes() == [3, 4, 3]
    # Rank 0's model and slow state are everyone's where a worker came...
    assert len({told["digest"] for told in report.begun(step=6)}) == 1
    # ... and where one went each of the others went on with its own part of the window.
    assert len({told["digest"] for told in report.begun(step=14)}) == 3


@pytest.mark.limit(IDLE + 10)
@pytest.mark.parametrize("fit", [False, pytest.param(True, marks=pytest.mark.only_all_cases)])
def test_a_worker_joins_a_script_that_takes_a_step_before_run(fit: bool) -> None:
    """That step does not communicate and is not counted; its graph goes on to train in ``run``."""
    plan = Plan(workers=2, sizes={6: 3}, steps=12, fit=fit, step_before=True)
    report = run("tensorflow", plan)
    assert report.problems() == [], report.output
    assert report.sizes() == [2, 3]
    assert len({told["digest"] for told in report.begun(step=0)}) == 1
    assert len({told["digest"] for told in report.begun(step=6)}) == 1
