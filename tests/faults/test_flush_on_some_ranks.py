"""flush() on some of the ranks only is one error on all of them, not a hang."""

import pytest
from ranks import by_rank
from workers import hvd, same_error_in_a_step, worker


@pytest.mark.ranks(2, 3)
def test_a_flush_that_meets_the_others_next_sync_names_both_steps() -> None:
    this = worker(sync_period=3)
    this.step(1.0)
    this.step(1.0)
    same_error_in_a_step(
        RuntimeError,
        r"the ranks are in different syncs: rank 0 after 3 steps, rank 1 after 2; call .*flush\(\) "
        "on all ranks or on none",
        this.optimizer.flush if hvd().rank() == 1 else lambda: this.step(1.0),
    )
    assert this.weights() == [by_rank(-3.0, -2.0, -3.0)]  # each its own, as before
    assert this.optimizer.sync_stats.syncs == 0
