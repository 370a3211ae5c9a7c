"""Loss scaling: overflows on random ranks at random steps part neither counters nor models."""

import math
import random

import pytest
from ranks import everyone
from workers import hvd, worker

STEPS, PERIOD = 1000, 7


def overflows(rank: int) -> list[bool]:
    """In which steps this rank's gradient overflows: a fifth of them, and here and there all."""
    own, common = random.Random(rank), random.Random("all")
    return [own.random() < 0.2 or common.random() < 0.02 for _ in range(STEPS)]


@pytest.mark.ranks(3)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_thousand_steps_of_three_ranks_stay_in_step(momentum: float) -> None:
    """Without momentum the weights count the steps that were taken, on average of the ranks."""
    this = worker(
        lr=1.0, momentum=momentum, sync_period=PERIOD, slow_momentum=0.0, loss_scaled=True
    )
    after_syncs: list[list[float]] = []
    this.optimizer.register_sync_hook(lambda record: after_syncs.append(this.weights()))
    for overflow in overflows(hvd().rank()):
        this.step(math.inf if overflow else 1.0)
    this.optimizer.flush()
    assert this.steps_taken() == STEPS
    assert len(after_syncs) == this.optimizer.sync_stats.syncs == STEPS // PERIOD + 1
    first, *others = everyone(after_syncs)
    assert all(other == first for other in others)
    assert math.isfinite(first[-1][0])
    if not momentum:
        taken = sum(overflows(rank).count(False) for rank in range(3))
        assert this.weights() == pytest.approx([-taken / 3])
