"""Optimizers that keep the weights a second time: the copy takes part in each sync.

By hand throughout, for SGDScheduleFree with lr = 1, μ = 1/2 and all at 0: the first step with
gradient 0 changes nothing, the second with g makes z = -g and y = -3/4 g, and x = y - (z - y).
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import schedulefree
import torch
from models import number, step_with
from ranks import by_rank, everyone
from torch import nn

import slowmo_hvd.torch as hvd

ADAM = {"lr": 0.3, "betas": (0.9, 0.9)}
CLASSES: dict[str, dict[str, Any]] = {
    "SGDScheduleFree": {"lr": 0.3},
    "SGDScheduleFreeClosure": {"lr": 0.3},
    "SGDScheduleFreeReference": {"lr": 0.3},
    "AdamWScheduleFree": ADAM,
    "RAdamScheduleFree": ADAM,
}


def call(optimizer: Any, name: str) -> None:
    """The optimizer's ``train()`` or ``eval()``, which the closure forms lack."""
    if hasattr(optimizer, name):
        getattr(optimizer, name)()


def by_hand(**options: Any) -> tuple[nn.Parameter, Any, hvd.DistributedOptimizer]:
    weight = number(0.0, torch.float64)
    inner = schedulefree.SGDScheduleFree([weight], lr=1.0, momentum=0.5)
    inner.train()
    return weight, inner, hvd.DistributedOptimizer(inner, **({"slow_momentum": 0.0} | options))


@pytest.mark.ranks(2)
@pytest.mark.parametrize("slow_momentum", [0.0, 0.5])
@pytest.mark.parametrize("name", CLASSES)
def test_the_optimum_of_the_mean_loss_is_reached(name: str, slow_momentum: float) -> None:
    """The workers' losses are w²/2 and (w - 2)²/2, and the first w is 4.

    Adam divides by moments that the workers must share to stop at the optimum of the mean.
    """
    weight = number(4.0, torch.float64)
    inner = getattr(schedulefree, name)([weight], **CLASSES[name])
    buffers = "average" if "Adam" in name else "maintain"
    optimizer = hvd.DistributedOptimizer(
        inner, sync_period=4, slow_momentum=slow_momentum, buffers=buffers
    )
    call(inner, "train")

    def closure() -> float:
        optimizer.zero_grad()
        loss = ((weight - by_rank(0.0, 2.0)) ** 2 / 2).sum()
        loss.backward()
        return loss.item()

    for _ in range(202):
        optimizer.step(closure)
    optimizer.flush()
    call(optimizer, "eval")
    assert weight.item() == pytest.approx(1.0, abs=0.05)
    assert len(set(everyone(weight.item()))) == 1


@pytest.mark.ranks(2)
def test_the_copy_of_a_weight_frozen_inside_a_window_goes_with_it_to_the_mean() -> None:
    """Else eval() would take it from there to another value on each rank."""
    weight, inner, optimizer = by_hand(sync_period=3)
    optimizer.add_param_group({"params": [number(0.0)], "weight_sum": 0.0, "lr_max": -1.0})
    step_with(optimizer, 0.0, 0.0)
    step_with(optimizer, by_rank(4.0, 8.0), 0.0)
    weight.requires_grad_(False)
    step_with(optimizer, None, 0.0)
    assert weight.item() == -4.5  # the mean of -3 and -6
    assert inner.state[weight]["z"].item() == -6
    optimizer.eval()
    assert weight.item() == -3


@pytest.mark.ranks(2)
def test_the_workers_average_how_far_the_copy_is_from_the_weights() -> None:
    weight, inner, optimizer = by_hand(sync_period=2)
    step_with(optimizer, 0.0)
    step_with(optimizer, by_rank(4.0, 8.0))
    assert weight.item() == -4.5  # the mean of -3 and -6
    assert inner.state[weight]["z"].item() == -6
    optimizer.eval()
    assert weight.item() == -3


@pytest.mark.ranks(1, 2)
def test_the_copy_moves_with_the_slow_step() -> None:
    weight, inner, optimizer = by_hand(sync_period=2, slow_lr=2.0)
    step_with(optimizer, 0.0)
    step_with(optimizer, 4.0)
    assert weight.item() == -6  # twice -3
    assert inner.state[weight]["z"].item() == -7


@pytest.mark.ranks(1, 2)
def test_a_look_at_x_inside_a_window_is_no_progress() -> None:
    weight, _, optimizer = by_hand(sync_period=3, slow_lr=2.0)
    step_with(optimizer, 0.0)
    step_with(optimizer, 4.0)
    optimizer.eval()
    assert weight.item() == -2
    optimizer.train()
    optimizer.flush()
    assert weight.item() == -6


@pytest.mark.ranks(1, 2)
def test_a_flush_in_eval_mode_on_some_ranks_synchronises_what_is_trained() -> None:
    weight, inner, optimizer = by_hand(sync_period=4, slow_lr=2.0)
    step_with(optimizer, 0.0)
    step_with(optimizer, 4.0)
    if hvd.rank() == 0:
        optimizer.eval()
    optimizer.flush()
    assert weight.item() == (-5 if hvd.rank() == 0 else -6)
    assert inner.state[weight]["z"].item() == -7
    optimizer.train()
    assert weight.item() == -6


@pytest.mark.ranks(2)
@pytest.mark.filterwarnings("ignore:after 2 steps the weights of rank 1")
def test_after_an_exclusion_all_copies_begin_at_the_weights() -> None:
    """Worker 1 has none left, and all must hold one x."""
    weight, inner, optimizer = by_hand(sync_period=2)
    step_with(optimizer, 0.0)
    step_with(optimizer, by_rank(4.0, math.nan))
    assert weight.item() == -3
    assert inner.param_groups[0]["k"] == by_rank(2, 0)
    assert inner.state[weight]["z"].item() == -3 if hvd.rank() == 0 else weight not in inner.state
    optimizer.eval()
    assert weight.item() == -3


@pytest.mark.ranks(2)
def test_a_worker_that_saw_no_gradient_has_no_copy_and_all_begin_at_the_weights() -> None:
    weight, inner, optimizer = by_hand(sync_period=2)
    step_with(optimizer, by_rank(0.0, None))
    step_with(optimizer, by_rank(4.0, None))
    assert weight.item() == -1.5
    optimizer.eval()
    assert weight.item() == -1.5
    assert ("z" in inner.state.get(weight, {})) == by_rank(True, False)


@pytest.mark.ranks(2)
@pytest.mark.filterwarnings("ignore:after 2 steps the weights of rank 1")
def test_a_copy_that_is_not_finite_keeps_its_worker_out() -> None:
    weight, inner, optimizer = by_hand(sync_period=4)
    step_with(optimizer, 0.0)
    step_with(optimizer, 4.0)
    inner.state[weight]["z"].fill_(by_rank(-4.0, math.inf))
    optimizer.flush()
    assert optimizer.sync_stats.last is not None
    assert optimizer.sync_stats.last.excluded == (1,)
    assert weight.item() == -3


class FromACopy(torch.optim.Optimizer):
    """An optimizer of the user's own that steps in a copy, and says so."""

    second_copies: Any = ("fast",)

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for param in self.param_groups[0]["params"]:
            fast = self.state[param].setdefault("fast", param.clone())
            fast.sub_(param.grad)
            param.copy_(fast)


@pytest.mark.ranks(2)
def test_an_optimizer_of_the_users_own_names_its_copies() -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(FromACopy([weight]), sync_period=1, slow_momentum=0)
    step_with(optimizer, by_rank(2.0, 4.0))
    assert weight.item() == -3
    step_with(optimizer, 0.0)
    assert weight.item() == -3
    assert optimizer.state[weight]["fast"].item() == -3


@pytest.mark.ranks(1)
def test_what_it_names_must_be_names_of_copies() -> None:
    class Misspelt(FromACopy):
        second_copies = "fast"

    with pytest.raises(TypeError, match=r"Misspelt.second_copies must be a tuple .*, got 'fast'"):
        hvd.DistributedOptimizer(Misspelt([number(0.0)]))
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(FromACopy([weight]), sync_period=2)
    step_with(optimizer, 1.0)
    optimizer.state[weight]["fast"] = torch.zeros(3)
    with pytest.raises(ValueError, match="names 'fast', and what its state has under that is no"):
        optimizer.flush()


@pytest.mark.ranks(2)
def test_ranks_with_other_copies_are_an_error_on_all() -> None:
    weight = number(0.0)
    inner = FromACopy([weight]) if hvd.rank() else torch.optim.SGD([weight], lr=1.0)
    optimizer = hvd.DistributedOptimizer(inner)
    with pytest.raises(ValueError, match="the ranks differ in buffers of the inner optimizer"):
        step_with(optimizer, 1.0)


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("form", ["ScheduleFreeWrapper", "ScheduleFreeWrapperReference"])
def test_a_schedule_free_wrapper_around_ours_is_refused(form: str) -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0))
    outermost = getattr(schedulefree, form)(optimizer)
    outermost.train()
    with pytest.raises(TypeError, match="ScheduleFreeWrapper cannot be put around a Distributed"):
        step_with(outermost, 1.0)
