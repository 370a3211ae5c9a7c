"""τ, α and β as functions in PyTorch: saved and resumed, copied, and equal on all ranks."""

import copy
from typing import Any

import pytest
import torch
from courses import CHANGING, growing
from models import Linear, number, step_with, train, weights
from ranks import by_rank, same_error_everywhere

import slowmo_hvd.torch as hvd


def made(**settings: Any) -> tuple[Linear, hvd.DistributedOptimizer, Any]:
    torch.manual_seed(1)
    model = Linear()
    inner = torch.optim.SGD(model.parameters(), lr=0.2)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(inner, 0.9)
    return model, hvd.DistributedOptimizer(inner, **settings), scheduler


def trained(made: Any, steps: range) -> None:
    model, optimizer, scheduler = made
    for step in steps:
        train(model, optimizer, range(step, step + 1))
        scheduler.step()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("name", CHANGING)
def test_a_resumed_run_has_the_periods_of_one_that_was_not_interrupted(name: str) -> None:
    whole, saved = made(**CHANGING[name]), made(**CHANGING[name])
    trained(whole, range(30))
    trained(saved, range(13))
    state = copy.deepcopy([part.state_dict() for part in saved])
    resumed = made(**CHANGING[name])
    for part, of_part in zip(resumed, state, strict=True):
        part.load_state_dict(of_part)
    trained(resumed, range(13, 30))
    for ours, theirs in zip(weights(resumed[0]), weights(whole[0]), strict=True):
        assert torch.equal(ours, theirs)
    records = [optimizer.sync_stats.last for _, optimizer, _ in (whole, resumed)]
    assert records[0].sync_period == records[1].sync_period
    assert resumed[1].state_dict()["slowmo"]["period"] == whole[1].state_dict()["slowmo"]["period"]


@pytest.mark.ranks(2)
def test_the_rule_goes_by_the_learning_rate_that_the_workers_agreed_on() -> None:
    param, told = number(0.0), []
    inner = torch.optim.SGD([param], lr=by_rank(0.1, 0.3))  # 0.2 in the mean
    rule = hvd.schedules.qsr(2, 0.4, total_steps=9)  # (0.4 / 0.2)² = 4
    optimizer = hvd.DistributedOptimizer(inner, sync_period=rule)
    optimizer.register_sync_hook(lambda record: told.append((record.step, record.sync_period)))
    for _ in range(9):
        step_with(optimizer, 1.0)
    assert told == [(2, 2), (4, 2), (8, 4), (9, 1)]  # no window is longer than all before it


@pytest.mark.ranks(2)
def test_a_function_that_differs_is_found_in_the_first_step_and_at_each_windows_start() -> None:
    param = number(0.0)
    inner = torch.optim.SGD([param], lr=0.1)
    at_once = hvd.DistributedOptimizer(inner, sync_period=lambda steps: by_rank(2, 3))
    words = "the ranks differ in steps of the window: 2 on rank 0, 3 on rank 1"
    same_error_everywhere(ValueError, words, lambda: step_with(at_once, 1.0))
    later = hvd.DistributedOptimizer(inner, sync_period=lambda steps: 2 + (steps > 0) * hvd.rank())
    step_with(later, 1.0)
    words = r"in the sync after step 2: sync_period=2, .* on rank 0, sync_period=3, .* on rank 1"
    same_error_everywhere(RuntimeError, words, lambda: step_with(later, 1.0))


@pytest.mark.ranks(2)
@pytest.mark.parametrize("name", ["sync_period", "slow_lr", "slow_momentum", "outlier_factor"])
def test_a_number_on_one_rank_and_another_kind_on_the_other_is_one_error(name: str) -> None:
    other = None if name == "outlier_factor" else hvd.schedules.constant(0.5)
    other = growing if name == "sync_period" else other
    inner = torch.optim.SGD([number(0.0)], lr=0.1)
    number_of = {"sync_period": 2, "outlier_factor": 2.0}.get(name, 0.5)
    optimizer = hvd.DistributedOptimizer(inner, **{name: by_rank(number_of, other)})
    words = f"the ranks differ in {name}: {number_of} on rank 0, "
    same_error_everywhere(ValueError, words, lambda: step_with(optimizer, 1.0))


@pytest.mark.ranks(1)
def test_a_copy_has_the_function_too() -> None:
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([number(0.0)], lr=0.1), slow_momentum=hvd.schedules.linear(0.0, 0.5, 4)
    )
    assert "slow_momentum='Linear(first=0.0, last=0.5, length=4)'" in repr(copy.deepcopy(optimizer))


@pytest.mark.ranks(1)
@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"sync_period": lambda steps: 0}, ValueError, r"sync_period\(0\) must be an int >= 1"),
        ({"sync_period": lambda steps: 2.5}, TypeError, r"sync_period\(0\) must be an int >= 1"),
        (
            {"sync_period": lambda steps: 2, "overlap_steps": 2},
            ValueError,
            r"overlap_steps=2 must be less than sync_period\(0\)=2",
        ),
        ({"sync_period": lambda steps: 2, "fragments": 3}, ValueError, "fragments=3 must be at"),
    ],
)
def test_a_first_period_that_cannot_be_is_refused_at_once(
    settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    inner = torch.optim.SGD([number(0.0), number(0.0), number(0.0)], lr=0.1)
    with pytest.raises(error, match=words):
        hvd.DistributedOptimizer(inner, **settings)
