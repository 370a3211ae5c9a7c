"""Ranks with unequal numbers of batches: hvd.join(), as in Horovod."""

import pytest
import torch
from models import number, step_with
from ranks import by_rank
from torch import nn

import slowmo_hvd.torch as hvd


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("strategy", ["reset", "maintain", "average"])
def test_the_mean_is_over_the_ranks_that_still_train(strategy: str) -> None:
    """Horovod's Average of a constant 10 with one of two ranks joined is 5."""
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=1.0, momentum=0.0),
        sync_period=2,
        slow_momentum=0,
        buffers=strategy,
    )
    last = hvd.rank() == hvd.size() - 1
    for _ in range(2 if last else 4):
        step_with(optimizer, 1.0)
    assert weight.item() == (-2 if last else -4)
    if not last:
        assert optimizer.sync_stats.last is not None
        assert optimizer.sync_stats.last.workers == hvd.size() - 1
        assert optimizer.sync_stats.last.displacement_norm == 2
    hvd.join()


@pytest.mark.ranks(2)
def test_one_window_less_by_hand() -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=1.0), sync_period=1, slow_momentum=0.5
    )
    step_with(optimizer, by_rank(1.0, 3.0))  # u = 2
    if hvd.rank() == 0:
        step_with(optimizer, 5.0)  # d̄ = 5, not 2.5: u = 0.5·2 + 5
        assert weight.tolist() == [-8, -8]
    hvd.join()
    hvd.broadcast_(weight.data, root_rank=0, name="the model of the rank that trained longest")
    assert weight.tolist() == [-8, -8]


@pytest.mark.ranks(2)
def test_a_rank_that_stops_inside_a_window_leaves_it_to_the_others() -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=1.0), sync_period=3, slow_momentum=0
    )
    for _ in range(by_rank(3, 1)):
        step_with(optimizer, 1.0)
    assert weight.item() == by_rank(-3, -1)
    hvd.join()
