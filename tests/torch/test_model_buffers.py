"""flush(model) averages what the model counts as it trains, and mends it where it broke."""

import math
import warnings
from typing import Any

import pytest
import torch
from models import number
from ranks import by_rank, equal_on_all_ranks, everyone, same_error_everywhere
from torch import Tensor, nn

import slowmo_hvd.torch as hvd


class Counting(nn.Module):
    """A weight, and buffers of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = number(0.0)
        self.norm = nn.BatchNorm1d(2)
        self.again = self.norm
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("none", None)
        self.register_buffer("brain", torch.zeros(2, dtype=torch.bfloat16))
        self.register_buffer("wide", torch.zeros((), dtype=torch.float64))
        self.register_buffer("complex", torch.zeros(1, dtype=torch.complex64))
        self.register_buffer("integer", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))
        self.register_buffer("expanded", torch.ones(()).expand(3))
        # A cache, of another size on each worker.
        self.register_buffer("cache", torch.ones(1 + hvd.rank()), persistent=False)
        self.register_buffer("same_mean", self.mean)


def counting(**options: Any) -> tuple[Any, hvd.DistributedOptimizer]:
    model = Counting()
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0), **({"sync_period": 2} | options)
    )
    step(model, optimizer)
    return model, optimizer


def step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    model.weight.grad = torch.ones(1)
    optimizer.step()


@pytest.mark.ranks(1, 2, 3)
@pytest.mark.parametrize("steps", [1, 2])  # in a window, and at its start
def test_statistics_become_their_mean_and_all_else_stays(steps: int) -> None:
    model, optimizer = counting()
    for _ in range(steps - 1):
        step(model, optimizer)
    rank, mean = hvd.rank(), (hvd.size() - 1) / 2
    for name in ("mean", "brain", "wide", "complex", "integer"):
        getattr(model, name).fill_(rank)
    model.norm.running_mean.copy_(torch.tensor([rank, 0.1]))
    model.norm.num_batches_tracked.fill_(rank)
    optimizer.flush()
    assert model.mean.tolist() == [rank] * 2
    optimizer.flush(model)
    for name in ("mean", "brain", "wide", "complex"):
        assert torch.all(getattr(model, name) == mean), name
    assert model.norm.running_mean[0] == mean
    assert model.norm.running_mean[1] == torch.tensor(0.1)  # equal on all, so not a bit less
    assert model.norm.num_batches_tracked == rank
    assert model.integer == rank
    assert model.mask.tolist() == [0.0, -math.inf]
    assert model.cache.tolist() == [1.0] * (1 + rank)
    assert optimizer.sync_stats.syncs == 1


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_worker_whose_statistics_broke_takes_the_others(broken: float) -> None:
    model, optimizer = counting()
    model.mean.copy_(torch.tensor([5.0, broken if hvd.rank() == 0 else 2.0 + hvd.rank()]))
    optimizer.flush(model)
    others = range(1, hvd.size())
    assert model.mean.tolist() == [5.0, 2.0 + sum(others) / len(others)]


@pytest.mark.ranks(1, 2)
def test_statistics_that_broke_on_all_ranks_are_told_of() -> None:
    model, optimizer = counting()
    model.norm.running_var.fill_(math.nan)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.flush(model)
    assert [str(warning.message) for warning in caught] == [
        "after 1 steps norm.running_var of the model are not finite on any rank, and flush() "
        "leaves them so: go on from the last checkpoint"
    ]
    assert caught[0].filename == __file__
    assert model.norm.running_var.isnan().all()


@pytest.mark.ranks(2)
def test_a_batch_norm_that_saw_a_bad_batch_heals() -> None:
    torch.manual_seed(hvd.rank())
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), sync_period=4)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    for bad in (False, True, False):
        optimizer.zero_grad()
        inputs = torch.randn(8, 3) * (math.nan if bad and hvd.rank() == 0 else 1.0)
        model(inputs).square().mean().backward()
        optimizer.step()
    with pytest.warns(UserWarning, match=r"weights of rank 0 are not finite: .*; flush\(model\) a"):
        optimizer.flush(model)
    held: list[Tensor] = [*model.parameters(), *model.buffers()]
    assert all(tensor.isfinite().all() for tensor in held)
    assert equal_on_all_ranks(held)  # the counts of batches too, as both saw three


@pytest.mark.ranks(2)
def test_horovods_sync_batch_norm_keeps_what_it_has() -> None:
    """Its statistics are equal on all ranks already. Its forward pass wants a GPU."""
    model = hvd.SyncBatchNorm(2)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), sync_period=2)
    model.running_mean.copy_(torch.tensor([0.1, 0.7]))
    model.weight.grad = torch.ones(2)
    optimizer.step()
    optimizer.flush(model)
    assert torch.equal(model.running_mean, torch.tensor([0.1, 0.7]))


@pytest.mark.ranks(1, 2)
def test_before_the_first_step_nothing_is_averaged() -> None:
    model = Counting()
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=1.0))
    model.mean.fill_(hvd.rank())
    optimizer.flush(model)
    assert model.mean.tolist() == [hvd.rank()] * 2


@pytest.mark.ranks(1)
def test_it_takes_nothing_but_a_module() -> None:
    model, optimizer = counting()
    with pytest.raises(TypeError, match=r"takes the torch.nn.Module .*, or nothing, got list"):
        optimizer.flush(list(model.parameters()))  # type: ignore[arg-type]
    optimizer.flush(nn.Sequential())  # nothing in it, and false to Python


@pytest.mark.ranks(2)
def test_models_that_differ_are_an_error_on_all() -> None:
    model, optimizer = counting(sync_period=9)
    other = nn.BatchNorm1d(by_rank(2, 3))
    same_error_everywhere(
        ValueError,
        r"the ranks differ in the model given to flush\(\): number 0 is \['running_mean', \[2\], "
        r"'torch.float32'\] on rank 0, \['running_mean', \[3\], 'torch.float32'\] on rank 1; ",
        lambda: optimizer.flush(other),
    )
    step(model, optimizer)
    same_error_everywhere(
        ValueError,
        r"the ranks differ in the model given to flush\(\): \[.*\] on rank 0, 'no model' on rank 1",
        lambda: optimizer.flush(by_rank(other, None)),
    )
    step(model, optimizer)
    optimizer.flush(model)


@pytest.mark.ranks(3)
def test_it_works_without_a_rank_that_has_joined() -> None:
    model, optimizer = counting()
    model.mean.fill_(hvd.rank())
    if hvd.rank() < 2:
        optimizer.flush(model)
        assert model.mean.tolist() == [0.5, 0.5]
    hvd.join()
    assert len(everyone(None)) == 3
