"""While an average is under way a rank ends, breaks, or is interrupted by another collective."""

import math

import pytest
from ranks import by_rank, everyone
from workers import hvd, same_error_in_a_step, worker

PERIOD, STEPS = 3, 7


def expected(size: int, short: int, its_steps: int, overlap: int) -> list[float]:
    """Every rank's weight at the end, with gradient 1 + rank, β = 0 and rank ``short`` cut off.

    What is under way where a rank joins lands there; at the others' end too, since all join.
    """
    x = [0.0] * size
    launched: dict[int, tuple[float, float, int]] = {}  # where from, where to, and when

    def land(rank: int) -> None:
        start, mean, _ = launched.pop(rank)
        x[rank] = mean + (x[rank] - start)

    for step in range(1, STEPS + 1):
        training = [rank for rank in range(size) if rank != short or step <= its_steps]
        for rank in training:
            x[rank] -= 1 + rank
            if rank in launched and launched[rank][2] == step:
                land(rank)
        if step % PERIOD == 0:
            # The anchor's, from which each has come so far since the last launch.
            mean = sum(x[rank] for rank in training) / len(training)
            for rank in training:
                launched[rank] = x[rank], mean, step + overlap
        if short in launched and step == its_steps:
            land(short)
    for rank in list(launched):
        land(rank)
    return x


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("its_steps", range(STEPS))
@pytest.mark.parametrize("overlap", [1, 2])
def test_a_rank_may_run_out_while_an_average_is_under_way(overlap: int, its_steps: int) -> None:
    size = hvd().size()
    short = size - 1
    this = worker(sync_period=PERIOD, slow_momentum=0.0, overlap_steps=overlap)
    for _ in range(its_steps if hvd().rank() == short else STEPS):
        this.step(1.0 + hvd().rank())
    hvd().join()
    ends = expected(size, short, its_steps, overlap)
    assert this.weights() == pytest.approx([ends[hvd().rank()]])


@pytest.mark.ranks(2)
@pytest.mark.filterwarnings("ignore:after 2 steps the weights of rank 1 are not finite")
def test_a_worker_that_breaks_goes_on_from_the_anchor_and_then_with_the_others() -> None:
    this = worker(momentum=0.5, sync_period=2, slow_momentum=0.0, overlap_steps=1)
    this.step(1.0)
    this.step(by_rank(1.0, math.nan))  # 1 + 0.5 more on rank 0
    assert this.weights() == [by_rank(-2.5, 0.0)]
    this.step(1.0)
    # The sound worker's -2.5 has landed on both. Its momentum goes on, so it steps by 1 + 0.75;
    # the other's is new.
    assert this.weights() == [by_rank(-4.25, -3.5)]
    assert this.optimizer.sync_stats.last.excluded == (1,)


@pytest.mark.ranks(3)
def test_with_raise_all_stop_where_it_lands_and_the_sync_is_due_again() -> None:
    this = worker(sync_period=2, slow_momentum=0.5, on_nonfinite="raise", overlap_steps=1)
    this.step(1.0)
    this.step(by_rank(1.0, math.inf, 1.0))
    same_error_in_a_step(
        FloatingPointError,
        "after 2 steps the weights of rank 1 are not finite; on_nonfinite='exclude' would",
        lambda: this.step(1.0),
    )
    assert this.optimizer.sync_stats.syncs == 0
    this.step(1.0)  # launched anew: the broken one went on from the anchor
    this.optimizer.flush()
    assert this.optimizer.sync_stats.last.step == 4
    assert len({tuple(weights) for weights in everyone(this.weights())}) == 1


@pytest.mark.ranks(2)
def test_a_rank_that_flushes_alone_meets_the_others_in_their_next_sync() -> None:
    this = worker(sync_period=4, slow_momentum=0.0, overlap_steps=3)
    for _ in range(6):
        this.step(1.0)

    def part() -> None:
        if hvd().rank() == 0:
            this.optimizer.flush()
        for _ in range(5):
            this.step(1.0)

    same_error_in_a_step(RuntimeError, "the ranks are in different syncs: rank 0 after 6", part)


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("fragments", [1, 2])
def test_a_flush_leaves_one_model_whatever_is_under_way(fragments: int) -> None:
    for steps in range(1, 9):
        this = worker(2, sync_period=4, slow_momentum=0.5, overlap_steps=3)
        for _ in range(steps):
            this.step(1.0 + hvd().rank())
        this.optimizer.flush()
        assert len({tuple(weights) for weights in everyone(this.weights())}) == 1
        this.optimizer.flush()  # nothing is left to do
        assert this.optimizer.sync_stats.last.step == steps


@pytest.mark.ranks(2)
def test_all_may_take_one_ranks_state_while_an_average_is_under_way() -> None:
    this = worker(momentum=0.5, sync_period=3, slow_momentum=0.5, overlap_steps=2)
    for _ in range(4):
        this.step(1.0 + hvd().rank())
    this.take_all_from(1)
    seen = everyone((this.weights(), this.slow_momentum()))
    assert seen[0] == seen[1]
    this.step(1.0)  # it lands, on both
    assert len({tuple(weights) for weights in everyone(this.weights())}) == 1
    this.step(1.0)
    this.optimizer.flush()
    assert this.optimizer.sync_stats.last.workers == 2


@pytest.mark.ranks(2)
def test_the_record_says_what_was_hidden_and_what_training_waited_for() -> None:
    told = []
    this = worker(4, sync_period=2, slow_momentum=0.5, overlap_steps=1)
    this.optimizer.register_sync_hook(told.append)
    for _ in range(3):
        this.step(1.0)
    (record,) = told
    assert (record.step, record.window, record.fragments) == (2, 0, (0,))
    assert record.hidden > 0
    assert record.seconds >= record.waiting >= 0
    assert this.optimizer.sync_stats.hidden == record.hidden
