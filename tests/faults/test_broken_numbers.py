"""A worker whose weights are not finite is left out, and goes on with the others; or all stop."""

import math
import warnings

import pytest
from ranks import by_rank, everyone
from workers import hvd, same_error_in_a_step, worker

EXPECTED = pytest.mark.filterwarnings("ignore:after . steps the weights of rank")


@pytest.mark.ranks(2, 3, 4)
@pytest.mark.parametrize("gradient", [math.nan, math.inf, 3e38])  # the last one's square is inf
@pytest.mark.parametrize("who", ["the first", "the last"])
def test_the_others_go_on_without_it_and_it_goes_on_with_them(who: str, gradient: float) -> None:
    rank, size = hvd().rank(), hvd().size()
    broken = 0 if who == "the first" else size - 1
    this = worker(2, sync_period=2, slow_momentum=0.5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        this.step(gradient if rank == broken else 1.0 + rank)
        this.step(1.0 + rank)
    sound = [2 * (1.0 + other) for other in range(size) if other != broken]
    mean = sum(sound) / len(sound)
    assert this.weights() == pytest.approx([-mean, -mean])
    assert this.slow_momentum() == pytest.approx([mean, mean])
    assert everyone(this.weights()) == [this.weights()] * size
    record = this.optimizer.sync_stats.last
    assert (record.workers, record.excluded) == (size - 1, (broken,))
    assert record.displacement_norm == pytest.approx(mean * 2**0.5)
    assert math.isfinite(record.drift)
    assert [str(warning.message) for warning in caught] == [
        f"after 2 steps the weights of rank {broken} are not finite: left out of the average, to "
        "go on from the others' with fresh buffers of the inner optimizer; flush(model) also mends "
        "the model's own statistics, such as BatchNorm's"
    ]


@pytest.mark.ranks(2)
@pytest.mark.parametrize("buffers", ["reset", "maintain", "average"])
@EXPECTED
def test_its_momentum_is_fresh_whatever_becomes_of_the_others(buffers: str) -> None:
    this = worker(momentum=0.5, sync_period=1, slow_momentum=0.0, buffers=buffers)
    this.step(by_rank(2.0, math.nan))
    assert this.momentum() == [by_rank(0.0 if buffers == "reset" else 2.0, 0.0)]
    assert this.weights() == [-2.0]
    this.step(1.0)  # rank 0 moves by 0.5·2 + 1 where its momentum was kept
    assert this.weights() == [-3.0 if buffers == "reset" else -2.0 - (2.0 + 1.0) / 2]


@pytest.mark.ranks(2)
@EXPECTED
def test_a_momentum_that_is_not_finite_is_kept_out_of_their_average() -> None:
    this = worker(momentum=0.5, sync_period=2, slow_momentum=0.0, buffers="average")
    this.step(1.0)
    this.optimizer.flush()
    this.step(1.0)  # 0.5·1 + 1
    this.set_momentum(by_rank(2.0, math.inf))
    this.optimizer.flush()  # the weights are finite on both
    assert this.optimizer.sync_stats.last.excluded == (1,)
    assert this.weights() == [-1.0 - 1.5]
    assert this.momentum() == [by_rank(2.0, 0.0)]


@pytest.mark.ranks(2)
def test_a_large_momentum_is_averaged_as_any_other() -> None:
    """Its square is beyond float32, as the second moments of large gradients are in Adam."""
    this = worker(lr=1e-20, momentum=0.5, sync_period=1, slow_momentum=0.0, buffers="average")
    this.step(by_rank(1e30, 3e30))
    assert this.optimizer.sync_stats.last.excluded == ()
    assert this.weights() == pytest.approx([-2e10])


@pytest.mark.ranks(2, 3)
@EXPECTED
def test_half_precision_on_the_wire_leaves_it_out_too() -> None:
    this = worker(sync_period=1, slow_momentum=0.0, compression=hvd().Compression.fp16)
    this.step(math.nan if hvd().rank() == 0 else 3.0)
    assert this.weights() == [-3.0]


@pytest.mark.ranks(2)
@EXPECTED
def test_the_warm_up_and_a_flush_leave_it_out_too() -> None:
    this = worker(warmup_steps=1, sync_period=4, slow_momentum=0.0)
    this.step(by_rank(math.nan, 3.0))
    assert this.weights() == [-3.0]
    this.step(by_rank(2.0, math.nan))
    this.optimizer.flush()
    assert this.weights() == [-5.0]
    assert this.optimizer.sync_stats.last.excluded == (1,)


@pytest.mark.ranks(3)
def test_with_raise_all_stop_with_one_sentence_that_names_the_broken() -> None:
    this = worker(sync_period=1, slow_momentum=0.5, on_nonfinite="raise")
    this.step(1.0)
    same_error_in_a_step(
        FloatingPointError,
        "after 2 steps the weights of ranks 1, 2 are not finite; on_nonfinite='exclude' would",
        lambda: this.step(math.inf if hvd().rank() > 0 else 1.0),
    )
    assert this.slow_momentum() == [1.0]
    assert this.optimizer.sync_stats.syncs == 1


@pytest.mark.ranks(1, 2, 3)
def test_without_a_sound_worker_all_stop_and_the_slow_state_is_as_before() -> None:
    this = worker(sync_period=2, slow_momentum=0.5)
    for _ in range(3):
        this.step(1.0)
    same_error_in_a_step(
        FloatingPointError,
        "after 4 steps the weights of no worker are finite: lower the learning rate or clip",
        lambda: this.step(math.nan),
    )
    assert this.slow_momentum() == [2.0]
    assert this.optimizer.sync_stats.syncs == 1


@pytest.mark.ranks(3)
@EXPECTED
def test_a_rank_that_has_joined_is_no_broken_one() -> None:
    this = worker(sync_period=1, slow_momentum=0.0)
    this.step(by_rank(5.0, 7.0, 9.0))
    if hvd().rank() < 2:
        this.step(by_rank(math.nan, 4.0))
        record = this.optimizer.sync_stats.last
        assert (record.workers, record.excluded) == (1, (0,))
        assert this.weights() == [-7.0 - 4.0]
    hvd().join()
