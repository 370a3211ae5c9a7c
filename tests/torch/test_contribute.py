"""Averages weighted by samples, for batches that are not equally large on all ranks: PyTorch."""

import copy
from typing import Any

import pytest
import torch
from models import identical
from ranks import by_rank
from torch import nn

import slowmo_hvd.torch as hvd

INPUTS = torch.randn(10, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def mine() -> torch.Tensor:
    """Seven of ten examples on rank 0, three on rank 1."""
    return by_rank(INPUTS[:7], INPUTS[7:])


def loss(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()


def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1, dtype=torch.float64)


def made(model: nn.Module, **settings: Any) -> hvd.DistributedOptimizer:
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    return hvd.DistributedOptimizer(inner, model.named_parameters(), **settings)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss(model, inputs).backward()
    optimizer.step()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("pace", [{}, {"fragments": 2, "sync_period": 2}, {"warmup_steps": 9}])
def test_uneven_batches_averaged_in_every_step_are_one_large_batch(pace: dict[str, Any]) -> None:
    alone, ours = model(), model()
    bare = torch.optim.SGD(alone.parameters(), lr=0.1)
    optimizer = made(ours, **{"sync_period": 1, "slow_momentum": 0.0, **pace})
    for _ in range(6):
        step(alone, bare, INPUTS)
        optimizer.contribute(len(mine()))
        step(ours, optimizer, mine())
        optimizer.flush()
    torch.testing.assert_close(ours.weight, alone.weight, rtol=1e-12, atol=0)
    assert optimizer.sync_stats.last.samples == len(INPUTS)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("overlap", [0, 1])
def test_a_run_resumed_inside_a_window_goes_on_with_its_counts(overlap: int) -> None:
    settings = {"sync_period": 4, "overlap_steps": overlap}
    whole, resumed = model(), model()
    first = made(whole, **settings)
    for number in range(9):
        first.contribute(len(mine()) + number)
        step(whole, first, mine())
        if number == 5:
            saved = copy.deepcopy((whole.state_dict(), first.state_dict()))
    assert saved[1]["slowmo"]["samples"] == [2 * len(mine()) + 9]
    second = made(resumed, **settings)
    resumed.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    for number in range(6, 9):
        second.contribute(len(mine()) + number)
        step(resumed, second, mine())
    first.flush()
    second.flush()
    assert identical(resumed.state_dict(), whole.state_dict())


@pytest.mark.ranks(2)
def test_every_rank_hears_of_one_that_does_not_count() -> None:
    ours = model()
    optimizer = made(ours, sync_period=2)
    before = copy.deepcopy(ours.state_dict())
    said = "rank 1 counted no samples in the window that ends after step 2, and rank 0 did"
    for number in range(2):
        if hvd.rank() == 0:
            optimizer.contribute(7)
        if number == 0:
            step(ours, optimizer, mine())
        else:
            with pytest.raises(RuntimeError, match=said):
                step(ours, optimizer, mine())
    assert not identical(ours.state_dict(), before)
    optimizer.contribute(by_rank(0, 3))  # mended before the next step, which syncs
    step(ours, optimizer, mine())
    assert optimizer.sync_stats.last.samples == 17


@pytest.mark.ranks(2)
def test_a_rank_that_has_joined_has_no_samples() -> None:
    ours = model()
    optimizer = made(ours, sync_period=1, slow_momentum=0.0)
    optimizer.contribute(len(mine()))
    step(ours, optimizer, mine())
    if hvd.rank() == 0:
        for _ in range(2):
            optimizer.contribute(4)
            step(ours, optimizer, mine())
        assert optimizer.sync_stats.last.samples == 4
    hvd.join()


@pytest.mark.parametrize(
    ("samples", "error", "said"),
    [
        (-1, ValueError, "samples must be an int >= 0, got -1"),
        (2.5, TypeError, "samples must be an int >= 0, got 2.5"),
        (True, TypeError, "samples must be an int >= 0, got True"),
    ],
)
def test_what_is_no_count_is_refused(samples: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        made(model()).contribute(samples)
