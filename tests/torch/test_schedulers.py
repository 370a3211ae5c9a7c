"""torch's learning-rate schedulers, on the wrapped optimizer as on any other."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import Linear, number, step_with, train
from ranks import by_rank, equal_on_all_ranks, everyone
from torch.optim import lr_scheduler

import slowmo_hvd.torch as hvd

SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, step_size=3),
    "LambdaLR from 0": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda t: min(t / 4, 1)),
    "CosineAnnealingLR to 0": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=8),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=9),
    "CyclicLR": lambda optimizer: lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, step_size_up=2),
    "SequentialLR": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)],
        milestones=[4],
    ),
    "ReduceLROnPlateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
}


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_sets_the_learning_rates_that_it_sets_on_the_bare_optimizer(name: str) -> None:
    seen: list[list[tuple[float, float]]] = []
    for wrap in (lambda inner: inner, lambda inner: hvd.DistributedOptimizer(inner, sync_period=3)):
        model = Linear()
        optimizer = wrap(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
        scheduler = SCHEDULERS[name](optimizer)
        arguments = (1.0,) if name == "ReduceLROnPlateau" else ()
        lrs: list[tuple[float, float]] = []
        for step in range(8):
            train(model, optimizer, [step])
            scheduler.step(*arguments)
            lrs.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        seen.append(lrs)
        assert all(param.isfinite().all() for param in model.parameters())
    assert seen[0] == seen[1]


@pytest.mark.ranks(1, 2)
def test_the_outer_step_shrinks_at_once_when_the_learning_rate_does() -> None:
    """u counts in gradients, not in displacements: that is what 1/γ is for."""
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=1.0), sync_period=2, slow_momentum=0.5
    )
    scheduler = lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.125)
    for expected in (-1.0, -2.0, -2.125, -2.375):  # u = 2; then x = -2 - 0.125 · (0.5·2 + 2)
        step_with(optimizer, 1.0)
        scheduler.step()
        assert weight.item() == expected


@pytest.mark.ranks(1, 2)
def test_gamma_of_a_window_is_the_mean_of_its_steps() -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=1.0), sync_period=2, slow_momentum=0.5
    )
    scheduler = lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for _ in range(2):
        step_with(optimizer, 1.0)
        scheduler.step()
    assert optimizer.sync_stats.last is not None
    assert optimizer.sync_stats.last.learning_rates == (0.75,)
    assert weight.item() == -1.5  # u = 1.5 / 0.75 = 2
    for _ in range(2):  # at 0.25 and 0.125, with no gradient: γ β u = 0.1875 · 0.5 · 2
        step_with(optimizer, 0.0)
        scheduler.step()
    assert weight.item() == -1.6875


@pytest.mark.ranks(1, 2)
def test_a_window_at_learning_rate_0_changes_nothing_and_divides_by_nothing() -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=1.0), sync_period=1, slow_momentum=0.5
    )
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda t: float(t != 1))
    for expected in (-1.0, -1.0, -2.5):  # the third: u = 0.5·1 + 1, as if there was no second
        step_with(optimizer, 1.0)
        scheduler.step()
        assert weight.item() == expected


@pytest.mark.ranks(2)
def test_ranks_whose_learning_rates_part_still_hold_one_model() -> None:
    """ReduceLROnPlateau follows each rank's own loss; γ is the mean over the ranks."""
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=1.0), sync_period=1, slow_momentum=0.5
    )
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    step_with(optimizer, 1.0)
    scheduler.step(1.0)
    scheduler.step(by_rank(0.5, 2.0))  # worse on rank 1
    assert optimizer.param_groups[0]["lr"] == by_rank(1.0, 0.5)
    step_with(optimizer, 1.0)
    assert weight.item() == -2.125  # d̄ = 0.75, γ = 0.75, u = 0.5·1 + 1, x = -1 - 0.75·1.5
    assert equal_on_all_ranks([weight])
    assert optimizer.sync_stats.last is not None
    assert set(everyone(optimizer.sync_stats.last.learning_rates)) == {(0.75,)}


@pytest.mark.ranks(1)
def test_a_scheduler_around_the_inner_optimizer_works_too() -> None:
    inner = torch.optim.SGD([number(0.0)], lr=1.0)
    scheduler = lr_scheduler.StepLR(inner, step_size=1)
    optimizer = hvd.DistributedOptimizer(inner, sync_period=1)
    step_with(optimizer, 1.0)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.1
