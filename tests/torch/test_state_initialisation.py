"""Filling an empty optimizer state is no training step; and a state on one rank reaches all."""

import copy
import io
from collections.abc import Callable
from typing import Any

import horovod.torch
import pytest
import torch
from inner_optimizers import INNER
from models import Linear, identical, number, same, step_with, train, weights
from ranks import by_rank, equal_on_all_ranks, everyone
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
)

import slowmo_hvd.torch as hvd


def wrapped(model: torch.nn.Module, name: str = "Adam") -> hvd.DistributedOptimizer:
    inner = INNER[name]
    return hvd.DistributedOptimizer(
        inner.make(model.parameters()), sync_period=3, buffers=inner.strategy
    )


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.Adam])
def test_horovods_own_broadcast_neither_counts_nor_communicates(inner: Any) -> None:
    """It calls step() with zero gradients on every rank whose state is empty."""
    model = Linear()
    optimizer = hvd.DistributedOptimizer(inner(model.parameters(), lr=0.1), sync_period=3)
    horovod.torch.broadcast_optimizer_state(optimizer, root_rank=0)
    assert same(weights(model), weights(Linear()))
    syncs = []
    train(model, optimizer, range(6), after_step=lambda: syncs.append(optimizer.sync_stats.syncs))
    assert syncs == [0, 0, 1, 1, 1, 2]


@pytest.mark.ranks(2)
def test_horovods_own_broadcast_on_ranks_of_which_one_has_a_state() -> None:
    """Rank 1 alone calls step(): it must not wait for rank 0 in there."""
    model = Linear()
    optimizer = hvd.DistributedOptimizer(torch.optim.Adam(model.parameters()), sync_period=3)
    plain = torch.optim.Adam(model.parameters())
    if hvd.rank() == 0:
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        plain.step()
        optimizer.load_state_dict(plain.state_dict())
    horovod.torch.broadcast_optimizer_state(optimizer, root_rank=0)
    train(model, optimizer, range(3))
    assert optimizer.sync_stats.syncs == 1
    assert equal_on_all_ranks(model)


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("done", [0, 1, 3])
def test_torchs_distributed_checkpoint_is_refused_and_changes_nothing(done: int) -> None:
    """It would drop the slow state. With a reset, the inner state is empty after each sync: there
    it calls step() at a learning rate of 0, and here on rank 0 alone."""
    model = Linear()
    optimizer = wrapped(model, "SGD")
    train(model, optimizer, range(done))
    optimizer.zero_grad()
    before = weights(model), copy.deepcopy(optimizer.state_dict())
    calls: list[Callable[[], object]] = [
        lambda: get_optimizer_state_dict(model, optimizer),
        lambda: get_state_dict(model, optimizer),
        lambda: set_optimizer_state_dict(model, optimizer, {"state": {}, "param_groups": []}),
    ]
    if hvd.rank() == 0:
        for call in calls:
            with pytest.raises(RuntimeError, match=r"save optimizer.state_dict\(\) by torch.save"):
                call()
    assert get_model_state_dict(model).keys() == model.state_dict().keys()
    assert same(weights(model), before[0])
    assert identical(optimizer.state_dict(), before[1])
    train(model, optimizer, range(done, 6))
    assert optimizer.sync_stats.syncs == 2
    assert equal_on_all_ranks(model)


@pytest.mark.ranks(1, 2)
def test_a_real_step_whose_gradients_are_zero_counts() -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(torch.optim.Adam([weight], lr=0.1), sync_period=2)
    step_with(optimizer, 0.0)
    step_with(optimizer, 0.0)
    assert optimizer.sync_stats.syncs == 1


@pytest.mark.ranks(1, 2, 3)
@pytest.mark.parametrize("done", [0, 2, 3, 4])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("SGD", torch.float32),
        ("Adam", torch.float32),
        ("Adam", torch.bfloat16),
        ("LBFGS", torch.float32),
        ("SparseAdam", torch.float64),
        ("the user's own", torch.float32),
    ],
)
def test_a_checkpoint_that_the_root_alone_loaded_reaches_all_ranks(
    name: str, dtype: torch.dtype, done: int
) -> None:
    inner, root = INNER[name], hvd.size() - 1
    trained = inner.model(dtype)
    optimizer = wrapped(trained, name)
    train(trained, optimizer, range(done), closure=inner.closure)
    file = io.BytesIO()
    torch.save((trained.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    model = inner.model(dtype)
    resumed = wrapped(model, name)
    if hvd.rank() == root:
        model.load_state_dict(saved[0])
        resumed.load_state_dict(saved[1])
    model.load_state_dict(hvd.broadcast_object(model.state_dict(), root))
    hvd.broadcast_optimizer_state(resumed, root)

    state = resumed.state_dict()
    assert all(identical(state, theirs) for theirs in everyone(state))
    if hvd.rank() == root:
        assert identical(state, saved[1])
    train(model, resumed, range(done, 6), closure=inner.closure)
    assert equal_on_all_ranks(model)
    assert resumed.sync_stats.syncs == 2 - done // 3


@pytest.mark.ranks(2)
@pytest.mark.parametrize("order", ["before wrapping", "after wrapping"])
def test_the_inner_state_may_be_broadcast_before_or_after_wrapping(order: str) -> None:
    model = Linear()
    inner = torch.optim.Adam(model.parameters(), lr=by_rank(0.1, 0.2))
    if order == "before wrapping":
        hvd.broadcast_optimizer_state(inner, root_rank=0)  # Horovod's, for an inner optimizer
    optimizer = hvd.DistributedOptimizer(inner, sync_period=2)
    if order == "after wrapping":
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert optimizer.param_groups[0]["lr"] == 0.1
    train(model, optimizer, range(4))
    assert optimizer.sync_stats.syncs == 2
    assert equal_on_all_ranks(model)


@pytest.mark.ranks(2)
def test_a_root_whose_state_does_not_fit_is_an_error_on_every_rank() -> None:
    model = Linear()
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), sync_period=2 + hvd.rank()
    )
    # The root can load its own state; the other rank cannot, and must not leave it behind.
    if hvd.rank() == 0:
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    else:
        with pytest.raises(ValueError, match="saved with sync_period=2 and this optimizer has"):
            hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    with pytest.raises(ValueError, match="the ranks differ in sync_period"):
        optimizer.step()


@pytest.mark.ranks(1, 2)
def test_broadcasting_inside_a_window_leaves_the_root_as_it_was() -> None:
    model = Linear()
    optimizer = wrapped(model)
    train(model, optimizer, range(2))
    before = weights(model), copy.deepcopy(optimizer.state_dict())
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert same(weights(model), before[0])
    assert hvd.rank() != 0 or identical(optimizer.state_dict(), before[1])
    train(model, optimizer, [2])
    assert optimizer.sync_stats.syncs == 1
    assert equal_on_all_ranks(model)
