"""PyTorch's side of an average that is under way: what does not go with it, and what it is to."""

import copy
import re
from typing import Any

import pytest
import schedulefree
import torch
from models import Linear, number, step_with, train, weights
from ranks import everyone

import slowmo_hvd.torch as hvd


def sgd(*params: torch.nn.Parameter, **slowmo: Any) -> hvd.DistributedOptimizer:
    inner = torch.optim.SGD(params, lr=1.0)
    return hvd.DistributedOptimizer(inner, **{"slow_momentum": 0.0, **slowmo})


# ---- what is refused -----------------------------------------------------------------------


@pytest.mark.ranks(1)
@pytest.mark.parametrize(
    ("make", "settings", "why"),
    [
        (
            lambda params: torch.optim.LBFGS(params),
            {"overlap_steps": 1, "buffers": "reset"},
            "overlap_steps=1 cannot be used with LBFGS: its history is of steps from where all",
        ),
        (
            lambda params: torch.optim.LBFGS(params),
            {"fragments": 2, "buffers": "reset"},
            "fragments=2 cannot be used with LBFGS: its history is of steps from where all",
        ),
        (
            lambda params: schedulefree.SGDScheduleFree(params, lr=1.0),
            {"overlap_steps": 1},
            "overlap_steps=1 cannot be used with SGDScheduleFree: it keeps copies of the weights",
        ),
        (
            lambda params: schedulefree.SGDScheduleFree(params, lr=1.0),
            {"fragments": 2, "buffers": "reset"},
            "cannot be used with fragments=2 and SGDScheduleFree: it counts its steps once",
        ),
        (
            lambda params: torch.optim.SGD(params, lr=1.0),
            {"fragments": 3},
            "fragments=3 are more than the 2 parameters that they are to be dealt",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(
    make: Any, settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        hvd.DistributedOptimizer(make(list(Linear().parameters())), **settings)


@pytest.mark.ranks(2)
def test_fragments_take_schedule_free_optimizers_copies_along() -> None:
    model = Linear()
    inner = schedulefree.SGDScheduleFree(model.parameters(), lr=0.5)
    inner.train()
    optimizer = hvd.DistributedOptimizer(inner, sync_period=4, fragments=2)
    train(model, optimizer, range(9))
    optimizer.flush()
    copies = [inner.state[param]["z"].tolist() for param in model.parameters()]
    ends = everyone(([w.tolist() for w in weights(model)], copies))
    assert ends[0] == ends[1]


# ---- what a profile shows ------------------------------------------------------------------


@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    ("pace", "names"),
    [
        (
            {},
            {
                "slowmo.sync",
                "slowmo.pack.fragment0.bucket0",
                "slowmo.wait.fragment0.bucket1",
                "slowmo.land.fragment0.bucket1",
            },
        ),
        (
            {"overlap_steps": 1, "fragments": 2},
            {"slowmo.launch.fragment1", "slowmo.wait.fragment0", "slowmo.landing.fragment0"},
        ),
    ],
)
def test_a_profile_names_fragment_and_bucket(pace: dict[str, int], names: set[str]) -> None:
    params = [number(0.0) for _ in range(4)]
    optimizer = sgd(*params, sync_period=2, bucket_bytes=8, **pace)  # two in a bucket
    with torch.profiler.profile() as profile:
        for _ in range(2):
            step_with(optimizer, *[1.0] * 4)
    seen = {event.key for event in profile.key_averages()}
    assert names <= seen, sorted(key for key in seen if "slowmo" in key)


# ---- what changes on the way ---------------------------------------------------------------


@pytest.mark.ranks(2)
def test_what_is_frozen_while_it_is_under_way_lands_first() -> None:
    free, still = number(0.0), number(0.0)
    optimizer = sgd(free, still, sync_period=2, overlap_steps=1)
    gradient = 1.0 + 2 * hvd.rank()
    for _ in range(2):
        step_with(optimizer, gradient, gradient)
    still.requires_grad_(False)
    still.grad = None
    step_with(optimizer, gradient, None)  # -4 lands on both where this step begins
    assert (free.item(), still.item()) == (-4.0 - gradient, -4.0)
    step_with(optimizer, gradient, None)
    optimizer.flush()
    assert (free.item(), still.item()) == (-8.0, -4.0)


@pytest.mark.ranks(2)
def test_a_group_may_be_added_and_a_state_saved_while_something_is_under_way() -> None:
    first, second = number(0.0), number(10.0)
    optimizer = sgd(first, sync_period=2, overlap_steps=1)
    gradient = 1.0 + 2 * hvd.rank()
    for _ in range(2):
        step_with(optimizer, gradient)
    optimizer.add_param_group({"params": [second], "lr": 1.0})
    saved = optimizer.state_dict()["slowmo"]  # which lands it, as the next step would
    assert (saved["landing"], saved["launched"], first.item()) == ([0], {}, -4.0)
    step_with(optimizer, gradient, gradient)
    assert (first.item(), second.item()) == (-4.0 - gradient, 10.0 - gradient)


@pytest.mark.ranks(2)
def test_a_copy_made_while_something_is_under_way_lands_it_too() -> None:
    weight = number(0.0)
    optimizer = sgd(weight, sync_period=2, overlap_steps=1)
    gradient = 1.0 + 2 * hvd.rank()
    for _ in range(2):
        step_with(optimizer, gradient)
    twin_weight, twin = copy.deepcopy((weight, optimizer))
    for each in (optimizer, twin):
        step_with(each, gradient)
    assert weight.item() == twin_weight.item() == -4.0 - gradient
    for each in (optimizer, twin):
        step_with(each, gradient)
        each.flush()
    assert weight.item() == twin_weight.item() == -8.0


@pytest.mark.ranks(2)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_any_dtype_lands_with_its_local_steps(dtype: torch.dtype) -> None:
    weight = torch.nn.Parameter(torch.zeros(3, dtype=dtype))
    optimizer = sgd(weight, sync_period=2, overlap_steps=1)
    for step in range(3):
        weight.grad = torch.full_like(weight, 1.0 + 2 * hvd.rank())
        optimizer.step()
        assert weight.dtype == dtype
        if step == 1:  # launched
            saved = optimizer.state_dict()["slowmo"]
            assert (
                saved["launched"][0].dtype == torch.view_as_real(weight).dtype
                if (dtype.is_complex)
                else dtype
            )
    assert weight.tolist() == [-4.0 - (1.0 + 2 * hvd.rank())] * 3


@pytest.mark.ranks(2)
def test_weights_in_memory_with_gaps_and_of_no_elements_land_too() -> None:
    wide = torch.nn.Parameter(torch.zeros(4, 3).t())
    empty = torch.nn.Parameter(torch.zeros(0))
    many = [number(0.0) for _ in range(5)]
    optimizer = sgd(wide, empty, *many, sync_period=2, overlap_steps=1, bucket_bytes=16)
    gradient = 1.0 + 2 * hvd.rank()
    for _ in range(3):
        for weight in (wide, empty, *many):
            weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
    everywhere = torch.cat([wide.detach().reshape(-1), *many]).tolist()
    assert everywhere == [-4.0 - gradient] * len(everywhere)
