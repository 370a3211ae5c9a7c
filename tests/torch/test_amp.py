"""GradScaler: a step that overflowed on one rank alone is left out there, and still counts."""

import math

import pytest
import torch
from models import Linear, loss_of, number, same, weights
from ranks import by_rank, equal_on_all_ranks, everyone

import slowmo_hvd.torch as hvd


def scaled_step(
    optimizer: hvd.DistributedOptimizer,
    scaler: torch.amp.GradScaler,
    gradient: float,
    *,
    clip: float | None = None,
) -> None:
    """One step on weights whose gradient is ``gradient``, the way the torch manual writes it."""
    optimizer.zero_grad()
    params = [param for group in optimizer.param_groups for param in group["params"]]
    scaler.scale(sum((param * gradient).sum() for param in params)).backward()
    if clip is not None:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(params, clip)
    scaler.step(optimizer)
    scaler.update()


def scaler_of(scale: float = 1024.0) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale)


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("clip", [None, 100.0])
def test_gradients_reach_the_inner_optimizer_unscaled_once(clip: float | None) -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), sync_period=2)
    scaler = scaler_of()
    for _ in range(2):
        scaled_step(optimizer, scaler, 3.0, clip=clip)
    assert weight.item() == pytest.approx(-6)


@pytest.mark.ranks(1, 2)
def test_clipping_sees_unscaled_gradients() -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), sync_period=1)
    scaled_step(optimizer, scaler_of(), 3.0, clip=0.5)
    assert weight.item() == pytest.approx(-0.5)


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("clip", [None, 100.0])
@pytest.mark.parametrize("overflow_in", [0, 1, 2])
def test_an_overflow_on_one_rank_neither_parts_the_ranks_nor_hangs_them(
    overflow_in: int, clip: float | None
) -> None:
    """torch issue 76282: where GradScaler hides the step, the counters part and a sync hangs."""
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=1.0), sync_period=3, slow_momentum=0
    )
    scaler = scaler_of()
    for step in range(6):
        overflows = step == overflow_in and hvd.rank() == 1
        scaled_step(optimizer, scaler, math.inf if overflows else 1.0, clip=clip)
    assert optimizer.sync_stats.syncs == 2
    assert weight.item() == pytest.approx(-6 + 1 / hvd.size())  # one worker took one step less
    assert equal_on_all_ranks([weight])
    assert scaler.get_scale() == (512 if hvd.rank() == 1 else 1024)


@pytest.mark.ranks(2)
def test_a_step_left_out_changes_neither_the_weights_nor_the_inner_state_there() -> None:
    weight = number(0.0)
    inner = torch.optim.Adam([weight], lr=1.0)
    optimizer = hvd.DistributedOptimizer(inner, sync_period=10)
    scaler = scaler_of()
    scaled_step(optimizer, scaler, 1.0)
    before = weight.item(), inner.state[weight]["step"].item()
    scaled_step(optimizer, scaler, by_rank(math.inf, 1.0))
    after = weight.item(), inner.state[weight]["step"].item()
    assert (before == after) == (hvd.rank() == 0)
    assert after[1] == by_rank(1, 2)


@pytest.mark.ranks(1, 2)
def test_an_overflow_on_all_ranks_ends_windows_too() -> None:
    weight = number(3.0)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), sync_period=2)
    scaler = scaler_of()
    for _ in range(2):
        scaled_step(optimizer, scaler, math.nan)
    assert optimizer.sync_stats.syncs == 1
    assert weight.item() == 3
    assert scaler.get_scale() == 256


@pytest.mark.ranks(1, 2)
def test_the_scale_is_gone_before_a_step_without_the_scaler() -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), sync_period=10)
    scaled_step(optimizer, scaler_of(), 1.0)
    weight.grad = torch.ones(1)
    optimizer.step()
    assert weight.item() == pytest.approx(-2)


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
def test_scaling_by_a_power_of_two_changes_no_bit(name: str) -> None:
    trained = []
    for scaler in (scaler_of(), torch.amp.GradScaler("cpu", enabled=False)):
        model = Linear()
        optimizer = hvd.DistributedOptimizer(
            getattr(torch.optim, name)(model.parameters(), lr=0.1), sync_period=2
        )
        for step in range(4):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, step)).backward()
            scaler.step(optimizer)
            scaler.update()
        trained.append(weights(model))
    assert same(*trained)


@pytest.mark.ranks(1, 2)
def test_one_scaler_may_serve_two_optimizers() -> None:
    first, second = number(0.0), number(0.0)
    optimizers = [
        hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), sync_period=2, slow_momentum=0)
        for weight in (first, second)
    ]
    scaler = scaler_of()
    for step in range(4):
        for optimizer in optimizers:
            optimizer.zero_grad()
        bad = step == 1 and hvd.rank() == 0
        scaler.scale(first.sum() * (math.inf if bad else 1.0)).backward()
        scaler.scale(second.sum()).backward()
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
    assert [optimizer.sync_stats.syncs for optimizer in optimizers] == [2, 2]
    assert first.item() == pytest.approx(-4 + 1 / hvd.size())
    assert second.item() == -4


@pytest.mark.ranks(1, 2)
def test_a_scheduler_and_a_scaler_together() -> None:
    """The scheduler patches step(), and the scaler looks at what it may pass to it."""
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), sync_period=2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    scaler = scaler_of()
    for step in range(4):
        scaled_step(optimizer, scaler, by_rank(1.0, math.inf if step == 0 else 1.0))
        scheduler.step()
    assert optimizer.sync_stats.syncs == 2
    assert len(set(everyone(weight.item()))) == 1
