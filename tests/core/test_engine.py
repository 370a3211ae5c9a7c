"""The engine on NumPy arrays: the reference's numbers, and one sentence where a sync is torn."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy_workers import LostError, Ring, Worker, together
from problem import SCHEDULES, STEPS, X0, assert_close, gradient

from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.records import SyncRecord
from slowmo_hvd.core.reference import SGD, slowmo
from slowmo_hvd.core.schedule import Sync


def trained(
    config: SlowMoConfig, schedule: str, workers: int, bucket: int
) -> list[list[list[np.ndarray]]]:
    """The weights of each worker after each step."""
    ring = Ring(workers)

    def train(rank: int) -> list[list[np.ndarray]]:
        worker, states = Worker(config, ring, rank, X0, bucket), []
        for step in range(STEPS):
            now = worker.slow.arrays(worker.slow.x.copy())
            worker.step(gradient(rank, step, now), SCHEDULES[schedule](step))
            states.append(worker.slow.arrays(worker.slow.x.copy()))
        return states

    return together(workers, train)


@pytest.mark.parametrize("bucket", [1, 2, 3, 100])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "settings",
    [
        {"slow_momentum": 0.6},
        {"slow_momentum": 0.0, "slow_lr": 0.7},
        {"slow_momentum": 0.6, "nesterov": True, "warmup_steps": 2},
    ],
    ids=str,
)
def test_it_gives_the_references_numbers_whatever_the_size_of_a_bucket(
    settings: dict[str, Any], schedule: str, bucket: int
) -> None:
    config, workers = SlowMoConfig(sync_period=3, **settings), 3
    ours = trained(config, schedule, workers, bucket)
    lr = SCHEDULES[schedule]
    states = slowmo(X0, gradient, lr, SGD(), config, workers, steps=STEPS)
    for step, state in enumerate(states):
        for rank in range(workers):
            assert_close(ours[rank][step], state.x[rank], 1e-12)


def with_two(work: Callable[[Worker], Any], lost_in: str = "") -> list[Any]:
    """The results of two workers with six weights in three buckets, from 0."""
    ring, config = Ring(2, lost_in), SlowMoConfig(sync_period=2, slow_momentum=0.0)
    return together(2, lambda rank: work(Worker(config, ring, rank, [np.zeros(6)], 2)))


def step(worker: Worker, gradient: float = 1.0) -> None:
    worker.step([np.full(6, gradient)], [1.0])


def test_a_record_tells_bytes_norm_and_drift() -> None:
    def work(worker: Worker) -> SyncRecord:
        for _ in range(2):
            step(worker, [1.0, 3.0][worker.rank])  # displacements of 2 and of 6 in each weight
        assert worker.engine.stats.last is not None
        return worker.engine.stats.last

    for record in with_two(work):
        assert record.displacement_norm == pytest.approx(4 * 6**0.5)
        assert record.drift == pytest.approx(2 * 6**0.5)
        # Six weights; two marks, news and γ; ‖d‖².
        assert record.bytes == 8 * (6 + 4 + 1)
        assert record.learning_rates == (1.0,)


@pytest.mark.parametrize("lost_in", ["x.header", "x.0"])
def test_a_worker_lost_before_the_first_bucket_has_landed_leaves_the_model_whole(
    lost_in: str,
) -> None:
    def work(worker: Worker) -> list[float]:
        step(worker)
        with pytest.raises(LostError):
            step(worker)
        worker.engine.check()
        return list(worker.slow.anchor)

    assert with_two(work, lost_in) == [[0.0] * 6] * 2


@pytest.mark.parametrize("lost_in", ["x.1", "x.2", "x.figures"])
def test_one_lost_between_the_buckets_tears_it_until_it_begins_afresh(lost_in: str) -> None:
    def work(worker: Worker) -> str:
        step(worker)
        with pytest.raises(LostError):
            step(worker)
        with pytest.raises(RuntimeError) as refused:
            step(worker)
        with pytest.raises(RuntimeError):
            worker.engine.check_whole()  # what is saved
        worker.engine.begin_afresh(1)  # what a load begins with
        worker.engine.check()
        return str(refused.value)

    assert (
        with_two(work, lost_in)
        == [
            "the sync after step 2 failed when a part of the model had been synchronised: load a "
            "checkpoint, or restore the last commit of elastic training, on every rank"
        ]
        * 2
    )


def test_ranks_in_different_syncs_learn_of_it_and_nothing_has_changed() -> None:
    def work(worker: Worker) -> str:
        step(worker)
        meet = [lambda: step(worker), lambda: worker.engine.sync(Sync.FLUSH)][worker.rank]
        with pytest.raises(RuntimeError) as raised:
            meet()
        assert not worker.slow.anchor.any()
        worker.engine.check()
        return str(raised.value)

    first, second = with_two(work)
    assert first == second
    assert "the ranks are in different syncs: rank 0 after 2 steps, rank 1 after 1" in first


@pytest.mark.filterwarnings("ignore:after 2 steps the weights of rank 1 are not finite")
def test_a_worker_that_is_not_finite_is_left_out_and_takes_the_others_weights() -> None:
    def work(worker: Worker) -> tuple[tuple[int, ...], list[float]]:
        for _ in range(2):
            step(worker, [1.0, np.nan][worker.rank])
        assert worker.engine.stats.last is not None
        return worker.engine.stats.last.excluded, list(worker.slow.x)

    assert with_two(work) == [((1,), [-2.0] * 6)] * 2
