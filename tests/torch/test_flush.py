"""flush() ends a window early, so that all ranks hold one model to save or to evaluate."""

import pytest
import torch
from models import Linear, number, same, step_with, train, weights
from ranks import by_rank, equal_on_all_ranks

import slowmo_hvd.torch as hvd


@pytest.mark.ranks(1, 2, 3)
def test_after_a_flush_all_ranks_hold_one_model() -> None:
    model = Linear()
    optimizer = hvd.DistributedOptimizer(torch.optim.Adam(model.parameters(), lr=0.1))
    train(model, optimizer, range(5))
    assert equal_on_all_ranks(model) == (hvd.size() == 1)
    optimizer.flush()
    assert equal_on_all_ranks(model)


@pytest.mark.ranks(1, 2)
def test_it_is_a_sync_like_any_other_and_a_fresh_window_follows() -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=0.5), sync_period=3, slow_momentum=0.5
    )
    step_with(optimizer, 1.0)
    step_with(optimizer, 1.0)
    optimizer.flush()
    assert weight.item() == -1  # d̄ = 1, γ = 0.5, u = 2
    for expected in (-1.0, -1.0, -1.5):  # three steps again; γ β u = 0.5 · 0.5 · 2
        step_with(optimizer, 0.0)
        assert weight.item() == expected


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("buffers", ["reset", "maintain", "average"])
def test_the_first_sync_may_come_in_inference_mode(buffers: str) -> None:
    """What is made there could not be written to later."""
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=1.0, momentum=0.5),
        sync_period=2,
        slow_momentum=0.5,
        buffers=buffers,
    )
    step_with(optimizer, 1.0)
    with torch.inference_mode():
        optimizer.flush()
    assert weight.item() == -1  # u = 1
    step_with(optimizer, 1.0)
    step_with(optimizer, 1.0)
    # The buffer is 1 and 1.5 after a reset, else 1.5 and 1.75; u = 0.5 + their sum.
    assert weight.item() == -1 - 0.5 - (2.5 if buffers == "reset" else 3.25)


@pytest.mark.ranks(1, 2)
def test_where_a_window_begins_it_does_nothing() -> None:
    model = Linear()
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), sync_period=2)
    optimizer.flush()  # before the first step
    train(model, optimizer, range(2))
    before = weights(model)
    optimizer.flush()
    optimizer.flush()
    assert same(weights(model), before)
    assert optimizer.sync_stats.syncs == 1


@pytest.mark.ranks(1, 2)
def test_in_the_warm_up_it_does_nothing() -> None:
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([number(0.0)], lr=0.1), sync_period=4, warmup_steps=2
    )
    step_with(optimizer, 1.0)
    optimizer.flush()
    assert optimizer.sync_stats.syncs == 1


@pytest.mark.ranks(2)
def test_it_averages_at_once() -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), sync_period=100)
    step_with(optimizer, by_rank(1.0, 3.0))
    assert weight.item() == by_rank(-1, -3)
    optimizer.flush()
    assert weight.item() == -2


@pytest.mark.ranks(1, 2)
def test_gradients_of_the_step_under_way_survive() -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), sync_period=3)
    step_with(optimizer, 1.0)
    weight.grad = torch.full((1,), 5.0)
    optimizer.flush()
    assert weight.grad.item() == 5
