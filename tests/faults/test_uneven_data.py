"""A rank that runs out of batches leaves the rest to the others, who average without it."""

import itertools

import pytest
from ranks import everyone
from workers import hvd, worker

PERIOD, STEPS = 3, 7


def expected(size: int, short: int, its_steps: int) -> list[float]:
    """Every rank's weight at the end, with gradient 1 + rank, β = 0 and rank ``short`` cut off."""
    x = [0.0] * size
    for step in range(1, STEPS + 1):
        training = [rank for rank in range(size) if rank != short or step <= its_steps]
        for rank in training:
            x[rank] -= 1 + rank
        if step % PERIOD == 0:
            mean = sum(x[rank] for rank in training) / len(training)
            for rank in training:
                x[rank] = mean
    return x


@pytest.mark.ranks(2, 3, 4)
@pytest.mark.parametrize("its_steps", range(STEPS))
@pytest.mark.parametrize("who", ["the first", "the last"])
def test_one_may_run_out_at_every_position_in_a_window(who: str, its_steps: int) -> None:
    size = hvd().size()
    short = 0 if who == "the first" else size - 1
    this = worker(sync_period=PERIOD, slow_momentum=0.0)
    for _ in range(its_steps if hvd().rank() == short else STEPS):
        this.step(1.0 + hvd().rank())
    last = int(hvd().join())
    assert this.weights() == pytest.approx([expected(size, short, its_steps)[hvd().rank()]])
    if its_steps < STEPS - STEPS % PERIOD:  # the others have waited for its word once more
        assert last != short


@pytest.mark.ranks(2, 3, 4)
@pytest.mark.parametrize("buffers", ["reset", "maintain", "average"])
def test_after_join_all_take_the_last_ones_model_and_go_on_together(buffers: str) -> None:
    """Every rank has another number of batches, none at all on rank 0."""
    this = worker(momentum=0.5, sync_period=PERIOD, slow_momentum=0.5, buffers=buffers)
    for epoch in range(2):
        for _ in range(2 * hvd().rank() + epoch):
            this.step(1.0 + hvd().rank())
        last = int(hvd().join())
        mine = everyone((this.weights(), this.slow_momentum()))
        this.take_all_from(last)
        assert this.weights() == mine[last][0]
        assert this.slow_momentum() == mine[last][1]
        assert len(set(everyone(this.steps_taken()))) == 1
    for _ in range(PERIOD):
        this.step(1.0 + hvd().rank())
    this.optimizer.flush()
    assert len({tuple(weights) for weights in everyone(this.weights())}) == 1
    assert this.optimizer.sync_stats.last.workers == hvd().size()


@pytest.mark.ranks(3, 4)
def test_several_may_run_out_one_after_the_other() -> None:
    size = hvd().size()
    this = worker(sync_period=1, slow_momentum=0.0)
    counts = []
    for _ in range(1 + hvd().rank()):
        this.step(1.0)
        counts.append(this.optimizer.sync_stats.last.workers)
    assert counts == list(itertools.islice(range(size, 0, -1), 1 + hvd().rank()))
    assert this.weights() == [-1.0 - hvd().rank()]
    hvd().join()
