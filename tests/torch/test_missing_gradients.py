"""A parameter without a gradient is averaged like any other, on every rank, in group order."""

import pytest
import torch
from models import number, step_with
from ranks import by_rank, equal_on_all_ranks

import slowmo_hvd.torch as hvd


@pytest.mark.ranks(2)
def test_a_rank_without_a_gradient_counts_as_one_that_did_not_move() -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), sync_period=1)
    step_with(optimizer, by_rank(2.0, None))
    assert weight.item() == -1


@pytest.mark.ranks(2)
def test_ranks_that_train_different_parameters_neither_hang_nor_part() -> None:
    """As experts do: rank 0 moves the first weight alone, rank 1 the last."""
    params = [number(0.0), number(0.0), number(0.0)]
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(params, lr=1.0, momentum=0.5), sync_period=2, slow_momentum=0
    )
    for _ in range(2):
        step_with(optimizer, by_rank(2.0, None), None, by_rank(None, 4.0))
    assert [param.item() for param in params] == [-2.5, 0, -5]  # halves of 2 + 3 and 4 + 6


@pytest.mark.ranks(1, 2)
def test_the_slow_momentum_moves_a_parameter_that_has_stopped_getting_gradients() -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=1.0), sync_period=1, slow_momentum=0.5
    )
    step_with(optimizer, 1.0)
    step_with(optimizer, None)
    assert weight.item() == -1.5


@pytest.mark.ranks(1, 2)
def test_no_gradient_anywhere_still_ends_windows() -> None:
    weight = number(3.0)
    optimizer = hvd.DistributedOptimizer(torch.optim.Adam([weight], lr=1.0), sync_period=2)
    for _ in range(4):
        step_with(optimizer, None)
    assert optimizer.sync_stats.syncs == 2
    assert weight.item() == 3


@pytest.mark.ranks(1, 2)
def test_a_frozen_parameter_stays_where_it_is() -> None:
    free, frozen = number(0.0), number(3.0)
    frozen.requires_grad_(False)
    optimizer = hvd.DistributedOptimizer(torch.optim.AdamW([free, frozen], lr=1.0), sync_period=1)
    for _ in range(3):
        free.grad = torch.ones(1)
        optimizer.step()
    assert frozen.item() == 3
    assert not frozen.requires_grad
    assert equal_on_all_ranks([free, frozen])
