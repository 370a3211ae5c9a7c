"""Line 2 of Algorithm 1: a window finds the inner buffers reset, as they were, or averaged."""

import copy
import math
from typing import Any

import pytest
import torch
from inner_optimizers import INNER
from models import number, same, step_with, train, weights
from ranks import by_rank, everyone
from torch import Tensor

import slowmo_hvd.torch as hvd


def buffers_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What the state holds for each parameter, copied."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return [copy.deepcopy(optimizer.state.get(param, {})) for param in params]


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("name", INNER)
def test_after_a_reset_the_next_step_is_that_of_a_fresh_optimizer(name: str) -> None:
    inner = INNER[name]
    model = inner.model(torch.float32)
    optimizer = hvd.DistributedOptimizer(
        inner.make(model.parameters()), sync_period=2, buffers="reset"
    )
    train(model, optimizer, range(2), closure=inner.closure)
    twin = copy.deepcopy(model)
    train(twin, inner.make(twin.parameters()), [2], closure=inner.closure)
    train(model, optimizer, [2], closure=inner.closure)
    assert same(weights(model), weights(twin))


@pytest.mark.ranks(1)
@pytest.mark.parametrize(
    ("inner", "resets"),
    [
        (torch.optim.SGD, True),
        (torch.optim.LBFGS, True),
        (torch.optim.Adam, False),
        (torch.optim.RMSprop, False),
    ],
)
def test_auto_resets_sgd_and_lbfgs_and_maintains_the_others(inner: Any, resets: bool) -> None:
    weight = number(1.0)
    options = {"momentum": 0.9} if inner is torch.optim.SGD else {}
    optimizer = hvd.DistributedOptimizer(inner([weight], lr=0.1, **options), sync_period=1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    assert (len(optimizer.state) == 0) == resets


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("name", INNER)
def test_maintain_leaves_every_buffer_as_the_local_steps_made_it(name: str) -> None:
    inner = INNER[name]
    model = inner.model(torch.float32)
    optimizer = hvd.DistributedOptimizer(
        inner.make(model.parameters()), sync_period=3, buffers="maintain"
    )
    train(model, optimizer, range(2), closure=inner.closure)
    before = buffers_of(optimizer)
    optimizer.flush()
    torch.testing.assert_close(buffers_of(optimizer), before, rtol=0, atol=0)


@pytest.mark.ranks(2)
def test_averaged_momentum_is_the_mean_over_the_workers() -> None:
    weight = number(0.0)
    inner = torch.optim.SGD([weight], lr=1.0, momentum=0.5)
    optimizer = hvd.DistributedOptimizer(inner, sync_period=2, buffers="average")
    step_with(optimizer, by_rank(2.0, 4.0))
    assert inner.state[weight]["momentum_buffer"].item() == by_rank(2.0, 4.0)
    step_with(optimizer, by_rank(0.0, 2.0))  # 0.5·2 + 0 and 0.5·4 + 2
    assert inner.state[weight]["momentum_buffer"].item() == 2.5  # the mean of 1 and 4


@pytest.mark.ranks(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_averaging_adam_takes_the_moments_and_leaves_the_step_count(dtype: torch.dtype) -> None:
    weight = number(0.0, dtype)
    inner = torch.optim.Adam([weight], lr=0.5, betas=(0.5, 0.5))
    optimizer = hvd.DistributedOptimizer(inner, sync_period=2, buffers="average")
    # Rank 1 has no gradient in the first step, so its Adam has counted one step, not two.
    step_with(optimizer, by_rank(2.0, None))
    step_with(optimizer, by_rank(2.0, 8.0))
    state = inner.state[weight]
    assert state["exp_avg"].item() == (1.5 + 4) / 2  # 0.5·1 + 0.5·2, and 0.5·8
    assert state["exp_avg_sq"].item() == (3 + 32) / 2  # 0.5·2 + 0.5·4, and 0.5·64
    assert state["exp_avg"].dtype == dtype
    assert state["step"].item() == by_rank(2, 1)


@pytest.mark.ranks(2)
def test_a_buffer_that_some_workers_lack_is_averaged_over_its_owners() -> None:
    seen_by_all, seen_by_one = number(0.0), number(0.0)
    inner = torch.optim.SGD([seen_by_all, seen_by_one], lr=1.0, momentum=0.5)
    optimizer = hvd.DistributedOptimizer(inner, sync_period=1, buffers="average")
    step_with(optimizer, by_rank(2.0, 4.0), by_rank(6.0, None))
    assert inner.state[seen_by_all]["momentum_buffer"].item() == 3
    if hvd.rank() == 0:
        assert inner.state[seen_by_one]["momentum_buffer"].item() == 6
    else:
        assert "momentum_buffer" not in inner.state.get(seen_by_one, {})


@pytest.mark.ranks(2)
def test_a_buffer_that_appears_later_on_one_rank_joins_the_average() -> None:
    weight = number(0.0)
    inner = torch.optim.SGD([weight], lr=1.0, momentum=0.5)
    optimizer = hvd.DistributedOptimizer(inner, sync_period=1, buffers="average")
    step_with(optimizer, None)  # no buffer anywhere
    step_with(optimizer, by_rank(None, 4.0))  # one on rank 1
    step_with(optimizer, by_rank(6.0, 0.0))  # 6 on rank 0, 0.5·4 on rank 1
    assert inner.state[weight]["momentum_buffer"].item() == 4


@pytest.mark.ranks(2, 3)
def test_after_averaging_all_ranks_hold_the_same_float_buffers() -> None:
    for name in ("Adam", "Adafactor", "Adagrad", "Muon", "NAdam", "RMSprop", "SparseAdam"):
        inner = INNER[name]
        model = inner.model(torch.float32)
        optimizer = hvd.DistributedOptimizer(
            inner.make(model.parameters()), sync_period=2, buffers="average"
        )
        train(model, optimizer, range(2))
        held: list[Tensor] = [
            value
            for buffers in buffers_of(optimizer)
            for value in buffers.values()
            if isinstance(value, Tensor)
        ]
        first, *others = everyone(held)
        assert held
        assert all(same(first, other) for other in others), name


@pytest.mark.ranks(2)
def test_averaging_sends_the_buffers_bytes_on_top() -> None:
    sent = {}
    for strategy in ("maintain", "average"):
        weight = torch.nn.Parameter(torch.zeros(1000))
        inner = torch.optim.Adam([weight], lr=0.1)
        optimizer = hvd.DistributedOptimizer(inner, sync_period=1, buffers=strategy)
        weight.grad = torch.ones(1000)
        optimizer.step()
        sent[strategy] = optimizer.sync_stats.bytes
    assert 8000 <= sent["average"] - sent["maintain"] < 8100  # two moments of 4 bytes


@pytest.mark.ranks(1, 2)
def test_reset_lets_momentum_run_through_the_warm_up() -> None:
    """The warm-up has no windows, so its momentum runs on until the first window begins."""
    weight = number(0.0)
    inner = torch.optim.SGD([weight], lr=1.0, momentum=0.5)
    optimizer = hvd.DistributedOptimizer(inner, sync_period=2, warmup_steps=2, buffers="reset")
    step_with(optimizer, 1.0)
    assert inner.state[weight]["momentum_buffer"].item() == 1
    step_with(optimizer, 1.0)
    assert weight.item() == -2.5
    assert len(inner.state) == 0


@pytest.mark.ranks(2)
def test_a_worker_that_joins_averages_the_buffers_it_was_given() -> None:
    """It has agreed on no buffers yet, while rank 0 has."""
    weight = number(0.0)
    inner = torch.optim.SGD([weight], lr=1.0, momentum=0.5)
    optimizer = hvd.DistributedOptimizer(inner, sync_period=1, buffers="average")
    step_with(optimizer, 1.0)
    fresh = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=1.0, momentum=0.5), sync_period=1, buffers="average"
    )
    joined = by_rank(optimizer, fresh)
    hvd.broadcast_optimizer_state(joined, root_rank=0)
    step_with(joined, None)  # agrees and averages buffers that no gradient has touched here
    step_with(joined, by_rank(1.0, 3.0))
    momentum = joined.state[weight]["momentum_buffer"].item()
    assert momentum == 0.5 * 1 + 2


@pytest.mark.ranks(2)
@pytest.mark.parametrize("buffers", ["reset", "maintain", "average"])
@pytest.mark.filterwarnings("ignore:after 2 steps the weights of rank 1")
def test_a_worker_that_was_left_out_corrects_adams_bias_anew(buffers: str) -> None:
    """A first step of Adam is of the learning rate's size, whatever the gradient is."""
    weight = number(0.0)
    inner = torch.optim.Adam([weight], lr=0.5, eps=0.0)
    optimizer = hvd.DistributedOptimizer(inner, sync_period=2, slow_momentum=0.0, buffers=buffers)
    step_with(optimizer, 1.0)
    step_with(optimizer, by_rank(1.0, math.nan))
    assert weight.item() == pytest.approx(-1.0)
    step_with(optimizer, by_rank(1.0, 0.001))
    assert weight.item() == pytest.approx(-1.5)
    assert inner.state[weight]["step"] == (1 if buffers == "reset" else by_rank(3, 1))
