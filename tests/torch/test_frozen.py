"""Frozen parameters: on all ranks alike, neither moved nor sent; thawed ones begin afresh."""

import copy
import warnings
from typing import Any

import pytest
import torch
from models import Linear, identical, number, same, step_with, train, weights
from ranks import by_rank, equal_on_all_ranks, everyone, same_error_everywhere
from torch import nn

import slowmo_hvd.torch as hvd


def sgd(*params: nn.Parameter, **options: Any) -> hvd.DistributedOptimizer:
    settings: dict[str, Any] = {"sync_period": 1, "slow_momentum": 0.5} | options
    return hvd.DistributedOptimizer(torch.optim.SGD(params, lr=1.0), **settings)


def slow(optimizer: hvd.DistributedOptimizer) -> dict[str, Any]:
    state: dict[str, Any] = optimizer.state_dict()["slowmo"]
    return state


def frozen(value: Any, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value, dtype=dtype), requires_grad=False)


@pytest.mark.ranks(1, 2, 3)
def test_a_parameter_frozen_at_a_windows_start_stays_bit_for_bit() -> None:
    free, still = number(0.0), number(0.0)
    optimizer = sgd(free, still)
    step_with(optimizer, 1.0, 1.0)
    still.requires_grad_(False)
    for _ in range(3):
        step_with(optimizer, 0.0, None)
    assert (free.item(), still.item()) == (-1.875, -1)  # 1 + 1/2 + 1/4 + 1/8


@pytest.mark.ranks(1, 2)
def test_a_thawed_parameter_begins_with_a_fresh_slow_momentum() -> None:
    free, other = number(0.0), number(0.0)
    optimizer = sgd(free, other)
    step_with(optimizer, 1.0, 1.0)
    other.requires_grad_(False)
    step_with(optimizer, 0.0, None)
    other.requires_grad_(True)
    step_with(optimizer, 0.0, by_rank(1.0, 3.0))
    moved = 1 if hvd.size() == 1 else 2
    assert (free.item(), other.item()) == (-1.75, -1 - moved)
    step_with(optimizer, 0.0, 0.0)
    assert other.item() == -1 - 1.5 * moved


@pytest.mark.ranks(2, 3)
def test_one_frozen_inside_a_window_takes_the_mean_at_once_and_no_more() -> None:
    free, other = number(0.0), number(0.0)
    optimizer = sgd(free, other, sync_period=3)
    for _ in range(3):
        step_with(optimizer, 1.0, 1.0)  # u = 3
    for _ in range(2):
        step_with(optimizer, by_rank(1.0, 3.0, 2.0), by_rank(1.0, 3.0, 2.0))
    other.requires_grad_(False)
    step_with(optimizer, by_rank(1.0, 3.0, 2.0), None)
    assert other.item() == -3 - 4  # the mean of 2 and 6
    assert free.item() == -3 - 6 - 1.5
    for _ in range(3):
        step_with(optimizer, 0.0, None)
    assert other.item() == -7


@pytest.mark.ranks(1, 2)
def test_frozen_parameters_are_neither_sent_nor_anchored() -> None:
    trained, still = nn.Parameter(torch.zeros(10)), nn.Parameter(torch.zeros(10_000))
    optimizer = sgd(trained, still)
    step_with(optimizer, 1.0, 1.0)
    whole = optimizer.sync_stats.bytes
    still.requires_grad_(False)
    step_with(optimizer, 1.0, None)
    assert slow(optimizer)["frozen"] == [1]
    assert set(slow(optimizer)["anchor"]) == set(slow(optimizer)["momentum"]) == {0}
    if hvd.size() == 2:
        assert whole > 40_000
        assert optimizer.sync_stats.bytes - whole < 100


@pytest.mark.ranks(2)
def test_unequal_frozen_parameters_of_any_dtype_become_the_roots_with_one_warning() -> None:
    ours = [
        frozen([1.0, 2.0 + hvd.rank()]),
        frozen([1, 2 + 2 * hvd.rank()], torch.int64),
        frozen(bool(hvd.rank()), torch.bool),
        frozen([0.5], torch.bfloat16),
        frozen([1j * hvd.rank()], torch.complex64),
        frozen([], torch.float64),
    ]
    weight = number(0.0)
    optimizer = sgd(weight, *ours)
    weight.grad = torch.ones(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step()
    assert [str(warning.message) for warning in caught] == [
        "rank 1 started from other weights than rank 0 (up to 2 apart) and takes rank 0's; "
        "broadcast the weights before the first step"
    ] * hvd.rank()
    assert [param.tolist() for param in ours] == [[1, 2], [1, 2], False, [0.5], [0], []]
    assert weight.item() == -1


@pytest.mark.ranks(1, 2)
def test_integer_parameters_may_be_in_the_optimizer_as_in_horovods() -> None:
    weight, counts = number(0.0), frozen([1, 2], torch.int64)
    optimizer = sgd(weight, counts)
    optimizer.add_param_group({"params": [frozen([3], torch.int32)]})
    for _ in range(2):
        weight.grad = torch.ones(1)
        optimizer.step()
    assert (weight.item(), counts.tolist()) == (-2.5, [1, 2])
    assert slow(optimizer)["frozen"] == [1, 2]


@pytest.mark.ranks(2)
def test_freezing_on_one_rank_alone_is_an_error_on_all() -> None:
    weight = number(0.0)
    weight.requires_grad_(hvd.rank() == 0)
    optimizer = sgd(weight, named_parameters=[("weight", weight)])
    same_error_everywhere(
        ValueError,
        r"the ranks differ in frozen parameters: \[\] on rank 0, \['weight'\] on rank 1",
        optimizer.step,
    )


@pytest.mark.ranks(2)
def test_a_worker_whose_weight_is_not_finite_is_left_out_of_the_mean() -> None:
    free, other = number(0.0), number(0.0)
    optimizer = sgd(free, other, sync_period=3)
    step_with(optimizer, 1.0, by_rank(1.0, float("inf")))
    other.requires_grad_(False)
    with pytest.warns(UserWarning, match="weights that were frozen are not finite on rank 1"):
        step_with(optimizer, 1.0, None)
    assert other.item() == -1


@pytest.mark.ranks(1, 2)
def test_an_optimizer_whose_parameters_are_all_frozen_goes_on() -> None:
    weight = number(0.0)
    optimizer = sgd(weight)
    step_with(optimizer, 1.0)
    weight.requires_grad_(False)
    step_with(optimizer, None)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step_with(optimizer, None)
    assert (weight.item(), optimizer.sync_stats.syncs) == (-1, 3)
    weight.requires_grad_(True)
    step_with(optimizer, by_rank(1.0, 3.0))
    assert weight.item() == (-2 if hvd.size() == 1 else -3)


@pytest.mark.ranks(2)
def test_a_gradient_left_from_before_the_freezing_moves_nothing() -> None:
    """Else it would, by other gradients on each rank, and nothing would average that."""
    weight = number(0.0)
    optimizer = sgd(weight)
    step_with(optimizer, 1.0)
    weight.requires_grad_(False)
    step_with(optimizer, by_rank(1.0, 3.0))
    assert everyone(weight.item()) == [-1, -1]


@pytest.mark.ranks(2)
def test_gradients_of_frozen_parameters_are_dropped_with_one_warning() -> None:
    weight = frozen([0.0])
    optimizer = sgd(weight)
    with pytest.warns(UserWarning, match="1 parameters with requires_grad=False have a gradient"):
        step_with(optimizer, by_rank(1.0, 3.0))
    step_with(optimizer, by_rank(1.0, 3.0))
    assert weight.item() == 0


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("meanwhile", ["flush", "save", "load"])
def test_switched_off_between_two_steps_nothing_is_lost(meanwhile: str) -> None:
    """Scripts of adversarial training do so, and flush or save wherever they are."""
    weight = number(0.0)
    optimizer = sgd(weight, sync_period=2)
    for _ in range(3):
        step_with(optimizer, by_rank(1.0, 3.0))
    moved = 2 if hvd.size() == 1 else 4
    weight.requires_grad_(False)
    if meanwhile == "flush":
        optimizer.flush()
        assert weight.item() == -2 * moved  # x, d̄ and γ β u: moved (1 + 1/2 + 1/2)
    saved = copy.deepcopy(optimizer.state_dict())
    assert saved["slowmo"]["frozen"] == []
    if meanwhile == "load":
        optimizer.load_state_dict(saved)
    weight.requires_grad_(True)
    step_with(optimizer, by_rank(1.0, 3.0))
    if meanwhile != "flush":
        assert weight.item() == -2.5 * moved  # moved (1 + 1 + 1/2)


@pytest.mark.ranks(1, 2)
def test_switching_in_every_step_trains_as_never_switching_while_the_step_sees_it_on() -> None:
    model, plain = Linear(), Linear()
    optimizers = [
        hvd.DistributedOptimizer(torch.optim.Adam(each.parameters(), lr=0.1), sync_period=2)
        for each in (model, plain)
    ]
    for step in range(5):
        train(model, optimizers[0], [step])
        model.requires_grad_(False)
        model.requires_grad_(True)
        train(plain, optimizers[1], [step])
    assert same(weights(model), weights(plain))


# ---- checkpoints -----------------------------------------------------------------------------


def half_frozen(model: Linear) -> hvd.DistributedOptimizer:
    model.second.requires_grad_(False)
    return hvd.DistributedOptimizer(torch.optim.Adam(model.parameters(), lr=0.1), sync_period=3)


@pytest.mark.ranks(1, 2)
def test_a_run_with_frozen_parameters_resumes_bit_for_bit() -> None:
    model = Linear()
    optimizer = half_frozen(model)
    train(model, optimizer, range(4))
    resumed = Linear()
    fresh = half_frozen(resumed)
    saved = copy.deepcopy(optimizer.state_dict())
    resumed.load_state_dict(model.state_dict())
    fresh.load_state_dict(saved)
    assert identical(fresh.state_dict(), saved)
    train(model, optimizer, range(4, 8))
    train(resumed, fresh, range(4, 8))
    assert same(weights(model), weights(resumed))
    assert equal_on_all_ranks([resumed.second])


@pytest.mark.ranks(1, 2)
def test_what_was_saved_frozen_and_is_trained_now_begins_afresh() -> None:
    free, other = number(0.0), number(5.0)
    other.requires_grad_(False)
    optimizer = sgd(free, other)
    step_with(optimizer, 1.0, None)
    saved = copy.deepcopy(optimizer.state_dict())
    other.requires_grad_(True)
    resumed = sgd(free, other)
    resumed.load_state_dict(saved)
    step_with(resumed, 0.0, by_rank(1.0, 3.0))
    step_with(resumed, 0.0, 0.0)
    moved = 1 if hvd.size() == 1 else 2
    assert (free.item(), other.item()) == (-1.75, 5 - 1.5 * moved)


@pytest.mark.ranks(1, 2)
def test_what_was_saved_trained_and_is_frozen_now_stays() -> None:
    free, other = number(0.0), number(0.0)
    optimizer = sgd(free, other)
    step_with(optimizer, 1.0, 1.0)
    saved = copy.deepcopy(optimizer.state_dict())
    other.requires_grad_(False)
    resumed = sgd(free, other)
    resumed.load_state_dict(saved)
    for _ in range(2):
        step_with(resumed, 0.0, None)
    assert (free.item(), other.item()) == (-1.75, -1)
    assert slow(resumed)["frozen"] == [1]


def as_of_version_1(step: int, position: int, window: int) -> dict[str, Any]:
    """What version 0.1 saved of SGD with two parameters, the second of them frozen."""
    group = {
        "lr": 1.0,
        "momentum": 0,
        "dampening": 0,
        "weight_decay": 0,
        "nesterov": False,
        "maximize": False,
        "foreach": None,
        "differentiable": False,
        "fused": None,
        "params": [0, 1],
    }
    form = (
        '{"\'state\'": {}, "\'param_groups\'": [{"\'lr\'": "float", "\'momentum\'": "int", '
        '"\'dampening\'": "int", "\'weight_decay\'": "int", "\'nesterov\'": "bool", '
        '"\'maximize\'": "bool", "\'foreach\'": "NoneType", "\'differentiable\'": "bool", '
        '"\'fused\'": "NoneType", "\'params\'": ["int", "int"]}]}'
    )
    return {
        "state": {},
        "param_groups": [group],
        "slowmo": {
            "version": 1,
            "config": {
                "sync_period": 2,
                "slow_lr": 1.0,
                "slow_momentum": 0.5,
                "nesterov": False,
                "buffers": "auto",
                "warmup_steps": 0,
            },
            "step": step,
            "window": window,
            "position": position,
            "lr_total": [float(position)],
            "lr_steps": [position],
            "anchor": {0: torch.tensor([-2.0]), 1: torch.tensor([5.0])},
            "momentum": {0: torch.tensor([2.0]), 1: torch.tensor([0.0])},
            "inner": {"optimizer": "SGD", "params": [[1], [1]], "layout": form},
        },
    }


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("position", [0, 1])
def test_a_checkpoint_of_version_1_loads_and_goes_on(position: int) -> None:
    free, still = number(-2.0 - position), frozen([5.0])
    optimizer = sgd(free, still, sync_period=2, buffers="reset")  # what "auto" was for SGD
    optimizer.load_state_dict(as_of_version_1(2 + position, position, 1))
    for _ in range(2 - position):
        step_with(optimizer, 1.0, None)
    assert (free.item(), still.item()) == (-5, 5)  # d̄ = 2, u = 2
    assert (slow(optimizer)["version"], slow(optimizer)["frozen"]) == (4, [1])


@pytest.mark.ranks(1)
@pytest.mark.parametrize(
    "listed", [[0], [1, 1], [2], [-1], [True], ["1"], (1,), {1: 1}, None, [0, 1], []]
)
def test_a_damaged_list_of_frozen_parameters_is_refused(listed: Any) -> None:
    model = Linear()
    optimizer = half_frozen(model)
    train(model, optimizer, range(2))
    damaged = copy.deepcopy(optimizer.state_dict())
    damaged["slowmo"]["frozen"] = listed
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"^cannot load this SlowMo state: "):
        optimizer.load_state_dict(damaged)
    assert identical(optimizer.state_dict(), before)
