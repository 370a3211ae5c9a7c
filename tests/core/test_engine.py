"""The engine on NumPy arrays: the reference's numbers, and one sentence where a sync is torn."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy_workers import LostError, Ring, Worker, together
from problem import SCHEDULES, STEPS, X0, assert_close, gradient

from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.records import SyncRecord
from slowmo_hvd.core.reference import SGD, slowmo
from slowmo_hvd.core.schedules import describe, qsr

FLUSH_AFTER = (2, 7, 8)


def growing(step: int) -> int:
    return 3 + step // 4


def warming_up(window: int) -> float:
    return min(0.3 * window, 0.6)


def shrinking(window: int) -> float:
    return 1 / (1 + window)


RULE = qsr(3, 0.7, total_steps=STEPS)  # τ from 3 to 9 and more at these learning rates


def samples(worker: int, step: int) -> int:
    return (3, 0, 5)[worker] + step % 2 + (worker == 1)


def trained(
    config: SlowMoConfig, schedule: str, workers: int, bucket: int, *, counted: bool = False
) -> list[list[tuple[list[np.ndarray], ...]]]:
    """The weights of each worker after each step, and what is saved then."""
    ring = Ring(workers)

    def train(rank: int) -> list[tuple[list[np.ndarray], ...]]:
        worker, states = Worker(config, ring, rank, X0, bucket), []
        slow = worker.slow
        for step in range(STEPS):
            if counted:
                worker.engine.contribute(samples(rank, step))
            worker.step(gradient(rank, step, slow.arrays(slow.x.copy())), SCHEDULES[schedule](step))
            if step + 1 in FLUSH_AFTER:
                worker.engine.flush()
            worker.engine.settle()
            arrays = (slow.x, slow.anchor, slow.momentum)
            states.append(tuple(slow.arrays(flat.copy()) for flat in arrays))
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
        {"overlap_steps": 2},
        {"fragments": 2},
        {"fragments": 2, "overlap_steps": 1, "warmup_steps": 1},
        {"fragments": 2, "overlap_steps": 2, "nesterov": True},  # two are under way at once
        {"sync_period": growing, "slow_momentum": warming_up, "slow_lr": shrinking},
        {"sync_period": growing, "fragments": 2, "overlap_steps": 2, "slow_momentum": warming_up},
        {"sync_period": RULE, "warmup_steps": 1},
        {"clip_displacement": 2.0, "warmup_steps": 1},
        {"clip_displacement": 2.0, "fragments": 2, "overlap_steps": 1, "nesterov": True},
        {"sync_period": RULE, "fragments": 2, "overlap_steps": 1},
    ],
    ids=lambda settings: ", ".join(f"{name}={describe(s)}" for name, s in settings.items()),
)
def test_it_gives_the_references_numbers_whatever_the_size_of_a_bucket(
    settings: dict[str, Any], schedule: str, bucket: int
) -> None:
    compare(SlowMoConfig(**{"sync_period": 3, **settings}), schedule, bucket)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"warmup_steps": 2, "nesterov": True},
        {"fragments": 2, "overlap_steps": 2},
        {"clip_displacement": 2.0},
    ],
)
def test_it_gives_the_references_numbers_where_samples_are_counted(
    settings: dict[str, Any],
) -> None:
    config = SlowMoConfig(**{"sync_period": 3, **settings})
    compare(config, "decaying in and between windows", 2, counted=True)


def compare(config: SlowMoConfig, schedule: str, bucket: int, *, counted: bool = False) -> None:
    """The engine's weights, anchors and momenta with the reference's, after every step."""
    workers = 3
    ours = trained(config, schedule, workers, bucket, counted=counted)
    states = slowmo(
        X0,
        gradient,
        SCHEDULES[schedule],
        SGD(),
        config,
        workers,
        steps=STEPS,
        flush_after=FLUSH_AFTER,
        fragment_of=[0, config.fragments - 1],
        samples=samples if counted else None,
    )
    for step, state in enumerate(states):
        for rank in range(workers):
            x, anchor, momentum = ours[rank][step]
            assert_close(x, state.x[rank], 1e-12)
            assert_close(anchor, state.anchor, 1e-12)
            if config.has_momentum:
                assert_close(momentum, state.momentum, 1e-11)


def with_two(work: Callable[[Worker], Any], lost_in: str = "", **settings: Any) -> list[Any]:
    """The results of two workers with six weights in three buckets, from 0."""
    ring, config = Ring(2, lost_in), SlowMoConfig(sync_period=2, slow_momentum=0.0, **settings)
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
        # Six weights; two marks, two counts of samples, news and γ; ‖d‖².
        assert record.bytes == 8 * (6 + 6 + 1)
        assert record.learning_rates == (1.0,)


def test_a_clip_shortens_the_mean_and_the_record_tells_by_how_much() -> None:
    def work(worker: Worker) -> SyncRecord:
        for _ in range(2):
            step(worker, [1.0, 3.0][worker.rank])  # a mean displacement of 4 in each of six weights
        assert list(worker.slow.x) == pytest.approx([-4 / 2] * 6)
        assert worker.engine.stats.last is not None
        return worker.engine.stats.last

    for record in with_two(work, clip_displacement=4 * 6**0.5 / 2):
        assert record.clipped == pytest.approx(0.5)
        assert record.displacement_norm == pytest.approx(4 * 6**0.5)


@pytest.mark.parametrize("overlap", [0, 1])
def test_all_hear_of_a_worker_that_counts_no_samples_and_nothing_has_changed(overlap: int) -> None:
    def work(worker: Worker) -> str:
        for _ in range(2 + overlap):
            if worker.rank == 0:
                worker.engine.contribute(5)
            try:
                step(worker)
            except RuntimeError as error:
                assert not worker.slow.anchor.any()
                assert worker.engine.samples == [10 + 5 * overlap if worker.rank == 0 else 0]
                return str(error)
        return ""

    assert with_two(work, overlap_steps=overlap) == 2 * [
        "rank 1 counted no samples in the window that ends after step 2, and rank 0 did: call "
        "contribute(samples) before step() on every rank, or on none; hvd.join() is for a rank "
        "that has no more batches"
    ]


def test_the_mean_is_weighted_by_samples_and_the_record_tells_of_them() -> None:
    def work(worker: Worker) -> SyncRecord:
        for _ in range(2):
            worker.engine.contribute([3, 1][worker.rank])
            step(worker, [1.0, 5.0][worker.rank])  # displacements of 2 and of 10 in each weight
        assert list(worker.slow.x) == [-(6 * 2 + 2 * 10) / 8] * 6
        assert worker.engine.stats.last is not None
        return worker.engine.stats.last

    for record in with_two(work):
        assert record.samples == 8
        assert record.displacement_norm == pytest.approx(4 * 6**0.5)
        # The mean square distance from 4, of 2 with the weight 6 and 10 with the weight 2.
        assert record.drift == pytest.approx(((6 * 2**2 + 2 * 6**2) / 8 * 6) ** 0.5)


@pytest.mark.parametrize("lost_in", ["x.header", "x.fragment0.bucket0"])
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


@pytest.mark.parametrize("lost_in", ["x.fragment0.bucket1", "x.fragment0.bucket2", "x.figures"])
def test_one_lost_between_the_buckets_tears_it_until_it_begins_afresh(lost_in: str) -> None:
    def work(worker: Worker) -> str:
        step(worker)
        with pytest.raises(LostError):
            step(worker)
        with pytest.raises(RuntimeError) as refused:
            step(worker)
        with pytest.raises(RuntimeError):
            worker.engine.settle()  # what is saved
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


def test_the_records_tell_what_each_window_had() -> None:
    ring, seen = Ring(1), []
    settings = {"sync_period": growing, "slow_momentum": warming_up, "slow_lr": shrinking}
    worker = Worker(SlowMoConfig(**settings, warmup_steps=1), ring, 0, [np.zeros(6)], 2)
    worker.engine.hooks[0] = seen.append
    for _ in range(8):
        step(worker)
    told = [(r.step, r.sync_period, r.slow_lr, r.slow_momentum) for r in seen]
    assert told == [(1, 3, 1.0, 0.0), (4, 3, 1.0, 0.0), (8, 4, 0.5, 0.3)]


@pytest.mark.parametrize("overlap", [0, 1])
def test_functions_that_differ_between_the_ranks_are_found_where_the_window_begins(
    overlap: int,
) -> None:
    def work(rank: int) -> str:
        def period(steps: int) -> int:
            return 2 + rank * (steps > 0)

        config = SlowMoConfig(
            sync_period=period, slow_lr=0.5, slow_momentum=0.5, overlap_steps=overlap
        )
        worker = Worker(config, ring, rank, [np.zeros(6)], 2)
        for _ in range(1 + overlap):
            step(worker)
        with pytest.raises(RuntimeError) as raised:
            step(worker)
        assert not worker.slow.anchor.any()
        worker.engine.check()
        return str(raised.value)

    ring = Ring(2)
    assert together(2, work) == 2 * [
        "the ranks differ in sync_period, slow_lr or slow_momentum in the sync after step 2: "
        "sync_period=2, slow_lr=0.5, slow_momentum=0.5 on rank 0, "
        "sync_period=3, slow_lr=0.5, slow_momentum=0.5 on rank 1; "
        "a callable must give the same on every rank"
    ]


def test_a_function_that_fails_on_one_rank_is_one_error_on_all() -> None:
    def work(rank: int) -> str:
        def momentum(window: int) -> float:
            return [0.5, 1.5][rank]

        worker = Worker(SlowMoConfig(sync_period=1, slow_momentum=momentum), ring, rank, x0, 2)
        with pytest.raises(RuntimeError) as raised:
            step(worker)
        assert (raised.value.__cause__ is not None) == (rank == 1)
        return str(raised.value)

    ring, x0 = Ring(2), [np.zeros(6)]
    assert together(2, work) == 2 * [
        "sync_period, slow_lr or slow_momentum failed on rank 1 in the sync after step 1: "
        "ValueError: slow_momentum(0) must be a number with 0 <= slow_momentum(0) < 1, got 1.5"
    ]


def test_ranks_in_different_syncs_learn_of_it_and_nothing_has_changed() -> None:
    def work(worker: Worker) -> str:
        step(worker)
        meet = [lambda: step(worker), worker.engine.flush][worker.rank]
        with pytest.raises(RuntimeError) as raised:
            meet()
        assert not worker.slow.anchor.any()
        worker.engine.check()
        return str(raised.value)

    first, second = with_two(work)
    assert first == second
    assert "the ranks are in different syncs: rank 0 after 2 steps, rank 1 after 1" in first


def test_they_learn_of_it_also_where_they_average_other_fragments() -> None:
    """A header is as long whatever is averaged."""

    def work(worker: Worker) -> str:
        def step() -> None:
            worker.step([np.ones(3)] * 2, [1.0, 1.0])

        step()
        with pytest.raises(RuntimeError) as raised:
            worker.engine.flush() if worker.rank else step()  # both fragments, and the first
        return str(raised.value)

    ring, config = Ring(2), SlowMoConfig(sync_period=4, fragments=2)
    x0 = [np.zeros(3), np.zeros(3)]
    first, second = together(2, lambda rank: work(Worker(config, ring, rank, x0, 2)))
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


# ---- with an overlap -----------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [0, 1])
def test_a_worker_that_has_moved_too_far_is_left_out_and_goes_on_from_the_others(
    overlap: int,
) -> None:
    def work(rank: int) -> tuple[SyncRecord, list[float]]:
        worker = Worker(config, ring, rank, [np.zeros(6)], 2)
        for _ in range(2 + overlap):
            step(worker, [1.0, 2.0, 100.0][rank] if worker.engine.schedule.step < 2 else 0.0)
        assert worker.engine.stats.last is not None
        return worker.engine.stats.last, list(worker.slow.x)

    ring = Ring(3)
    config = SlowMoConfig(
        sync_period=2, slow_momentum=0.0, outlier_factor=5.0, overlap_steps=overlap
    )
    with pytest.warns(UserWarning, match="after 2 steps rank 2 moved by more than outlier_factor"):
        results = together(3, work)
    for record, x in results:
        assert (record.workers, record.excluded, record.outliers) == (2, (2,), (2,))
        assert x == [-3.0] * 6  # the mean of -2 and -4
        assert record.learning_rates == (1.0,)
        assert record.displacement_norm == pytest.approx(3 * 6**0.5)
        assert record.drift == pytest.approx(6**0.5)


def test_with_two_workers_a_factor_of_two_is_warned_of_once() -> None:
    def work(worker: Worker) -> None:
        for _ in range(4):
            step(worker, [1.0, 100.0][worker.rank])

    with pytest.warns(UserWarning, match="outlier_factor=2 leaves nobody out where") as told:
        with_two(work, outlier_factor=2.0)
    assert len(told) == 2  # once on each


def test_workers_that_pull_apart_for_ten_windows_are_warned_of_once() -> None:
    def work(worker: Worker) -> None:
        for _ in range(2 * 30):
            step(worker, [1.0, -0.5][worker.rank])  # their mean moves a third as far as they drift

    with pytest.warns(UserWarning, match="after 20 steps the workers have drifted apart") as told:
        with_two(work)
    assert len(told) == 2  # once on each


def test_an_average_lands_later_and_no_local_step_is_lost() -> None:
    def work(worker: Worker) -> list[float]:
        seen = []
        for _ in range(5):
            step(worker, [1.0, 3.0][worker.rank])
            seen.append(float(worker.slow.x[0]))
        return seen

    # After step 2 they are at -2 and -6, and -4 in the mean, which lands after step 3: each has
    # then taken one step more. From there two steps lead to the next mean, -8.
    assert with_two(work, overlap_steps=1) == [[-1, -2, -5, -6, -9], [-3, -6, -7, -10, -11]]


def test_its_record_comes_with_the_landing_and_tells_what_was_hidden() -> None:
    def work(worker: Worker) -> SyncRecord:
        told: list[SyncRecord] = []
        worker.engine.hooks[0] = told.append
        for steps in range(1, 4):
            step(worker)
            assert len(told) == (steps == 3)
        return told[0]

    for record in with_two(work, overlap_steps=1):
        assert (record.step, record.window, record.fragments) == (2, 0, (0,))
        assert record.hidden >= 0
        assert record.seconds >= record.waiting >= 0


@pytest.mark.parametrize("lost_in", ["x.header", "x.fragment0.bucket0"])
def test_one_lost_before_anything_has_landed_opens_the_window_again(lost_in: str) -> None:
    def work(worker: Worker) -> tuple[Any, ...]:
        step(worker)
        step(worker)
        with pytest.raises(LostError):
            step(worker)
        worker.engine.settle()
        schedule, (rate,) = worker.engine.schedule, worker.engine.rates[0]
        return schedule.windows, schedule.positions, schedule.landings, rate.steps, rate.mean

    assert with_two(work, lost_in, overlap_steps=1) == [([0], [3], [0], 3, 1.0)] * 2


@pytest.mark.parametrize("lost_in", ["x.fragment0.bucket1", "x.figures"])
def test_one_lost_on_the_way_tears_the_model_and_the_first_error_says_who_was_lost(
    lost_in: str,
) -> None:
    def work(worker: Worker) -> str:
        step(worker)
        step(worker)
        with pytest.raises(LostError):  # elastic training goes by it
            worker.engine.settle()
        with pytest.raises(RuntimeError, match="failed when a part of the model") as refused:
            step(worker)
        return str(refused.value)

    first, second = with_two(work, lost_in, overlap_steps=1)
    assert first == second
    assert first.startswith("the sync after step 2 failed when")


@pytest.mark.filterwarnings("ignore:after 2 steps the weights of rank 1 are not finite")
def test_a_worker_that_is_not_finite_at_the_launch_goes_on_from_the_anchor() -> None:
    def work(worker: Worker) -> list[float]:
        seen = []
        for steps in range(4):
            step(worker, np.nan if worker.rank == 1 and steps == 1 else 1.0)
            seen.append(float(worker.slow.x[0]))
        return seen

    first, second = with_two(work, overlap_steps=1)
    assert first == [-1, -2, -3, -4]
    assert second == [-1, 0, -3, -4]


def test_what_is_launched_last_waits_for_what_was_launched_before() -> None:
    def work(worker: Worker) -> list[tuple[int, ...]]:
        told: list[SyncRecord] = []
        worker.engine.hooks[0] = told.append
        for _ in range(8):
            worker.step([np.ones(3)] * 2, [1.0, 1.0])
        worker.engine.flush()
        return [(record.step, *record.fragments) for record in told]

    ring = Ring(2)
    config = SlowMoConfig(sync_period=4, overlap_steps=3, fragments=2)
    x0 = [np.zeros(3), np.zeros(3)]
    syncs = together(2, lambda rank: work(Worker(config, ring, rank, x0, 2)))
    # The last two land in the flush, which then synchronises the first fragment's two steps.
    assert syncs == [[(2, 0), (4, 1), (6, 0), (8, 1), (8, 0)]] * 2


def test_joining_lands_what_is_under_way() -> None:
    def work(worker: Worker) -> tuple[float, list[int]]:
        for _ in range(3):
            step(worker, [1.0, 3.0][worker.rank])
        worker.engine.land()
        return float(worker.slow.x[0]), worker.engine.schedule.landings

    config = SlowMoConfig(sync_period=3, overlap_steps=2, slow_momentum=0.0)
    ring = Ring(2)
    done = together(2, lambda rank: work(Worker(config, ring, rank, [np.zeros(6)], 2)))
    assert done == [(-6.0, [0])] * 2


def test_a_name_is_in_use_until_what_is_under_way_is_over() -> None:
    """An optimizer may be dropped meanwhile; the next one must not have its name."""

    class Peer:
        pass

    ring = Ring(2)
    config = SlowMoConfig(sync_period=2, overlap_steps=1, slow_momentum=0.0)
    first, second = (Worker(config, ring, rank, [np.zeros(6)], 2) for rank in range(2))
    first.engine.named_by = Peer()
    peer = weakref.ref(first.engine.named_by)
    for _ in range(2):
        step(first)  # launched, and waits for the other
    flight = first.engine._flights._by_fragment[0]
    del first
    gc.collect()
    assert peer() is not None
    for _ in range(2):
        step(second)
    flight.wait()
    gc.collect()
    assert peer() is None
