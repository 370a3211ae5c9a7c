"""Line 2 of Algorithm 1: a window finds the inner buffers reset, as they were, or averaged."""

import copy
import math
from typing import Any

import pytest
import schedulefree
import torch
from inner_optimizers import INNER
from models import Linear, number, same, step_with, train, weights
from prodigyopt import Prodigy
from ranks import by_rank, everyone
from torch import Tensor

import slowmo_hvd.torch as hvd
from slowmo_hvd.torch.fresh_state import reset
from slowmo_hvd.torch.second_copies import second_copies

AVERAGED = ("ASGD", "Adam", "Adafactor", "Adagrad", "Muon", "NAdam", "RMSprop", "SparseAdam")


def buffers_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What the state holds for each parameter, copied."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return [copy.deepcopy(optimizer.state.get(param, {})) for param in params]


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("name", [n for n, inner in INNER.items() if "reset" in inner.strategies])
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


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_sgd_begins_a_window_with_its_whole_gradient(dampening: float) -> None:
    """As the first step of torch's SGD does, which takes it undampened."""
    weight = number(0.0)
    inner = torch.optim.SGD([weight], lr=1.0, momentum=0.5, dampening=dampening)
    optimizer = hvd.DistributedOptimizer(inner, sync_period=1, slow_momentum=0, buffers="reset")
    for expected in (-2.0, -4.0, -6.0):
        step_with(optimizer, 2.0)
        assert weight.item() == expected


@pytest.mark.ranks(1)
def test_a_reset_leaves_no_tensor_of_another_dtype_than_the_model_now_has() -> None:
    model = Linear()
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, inner, range(2))
    reset(inner, list(model.parameters()))
    assert all(not state["momentum_buffer"].any() for state in inner.state.values())
    model.double()
    reset(inner, list(model.parameters()))
    assert not inner.state


class CountsInItsGroups(torch.optim.SGD):
    """As several fused and third-party optimizers do, and those of schedulefree."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        self.defaults["k"] = 0
        for group in self.param_groups:
            group["k"] = 0

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["k"] += 1
            group["step"] = group.get("step", 0) + 1
        return super().step(closure)


@pytest.mark.ranks(1, 2)
def test_a_reset_takes_counts_in_the_groups_back_and_leaves_options() -> None:
    inner = CountsInItsGroups([number(0.0)], lr=0.5)
    optimizer = hvd.DistributedOptimizer(inner, sync_period=2, buffers="reset")
    inner.param_groups[0] |= {"lr": 0.25, "note": "mine"}
    step_with(optimizer, 1.0)
    assert (inner.param_groups[0]["k"], inner.param_groups[0]["step"]) == (1, 1)
    step_with(optimizer, 1.0)
    group = inner.param_groups[0]
    assert (group["k"], group["lr"], group["note"], "step" in group) == (0, 0.25, "mine", False)


@pytest.mark.ranks(1)
def test_strategies_that_an_optimizer_cannot_stand_are_refused() -> None:
    for strategy in ("reset", "average"):
        with pytest.raises(ValueError, match=f"buffers='{strategy}' cannot be used with Prodigy"):
            hvd.DistributedOptimizer(Prodigy([number(0.0)]), buffers=strategy)
    for strategy in ("maintain", "average"):
        with pytest.raises(ValueError, match=f"buffers='{strategy}' cannot be used with LBFGS"):
            hvd.DistributedOptimizer(torch.optim.LBFGS([number(0.0)]), buffers=strategy)
    inner = schedulefree.SGDScheduleFree([number(0.0)], warmup_steps=50)
    with pytest.raises(ValueError, match="count back before its warmup_steps=50 are done"):
        hvd.DistributedOptimizer(inner, buffers="reset")
    hvd.DistributedOptimizer(inner, buffers="average")


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize(
    "name", [n for n, inner in INNER.items() if "maintain" in inner.strategies]
)
def test_maintain_leaves_every_buffer_as_the_local_steps_made_it(name: str) -> None:
    inner = INNER[name]
    model = inner.model(torch.float32)
    made = inner.make(model.parameters())
    optimizer = hvd.DistributedOptimizer(made, sync_period=3, buffers="maintain")
    train(model, optimizer, range(2), closure=inner.closure)
    before = buffers_of(optimizer)
    optimizer.flush()
    after = buffers_of(optimizer)
    for buffers in [*before, *after]:
        for name in second_copies(made):  # these are no memory of a direction
            buffers.pop(name, None)
    torch.testing.assert_close(after, before, rtol=0, atol=0)


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
    for name in (*AVERAGED, "schedulefree's AdamW"):
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
    # Two moments of 4 bytes, and who has which.
    assert 8000 <= sent["average"] - sent["maintain"] < 8400


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
    assert inner.state[weight]["momentum_buffer"].item() == 0


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
