"""Accelerate, as a user writes it: prepare, backward, accumulate, save_state and load_state."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from models import Linear, loss_of, number, same, step_with, train, weights
from ranks import by_rank, equal_on_all_ranks
from torch import nn

import slowmo_hvd.torch as hvd


@pytest.fixture(autouse=True)
def _no_accelerator_survives() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)  # as Accelerate's own tests do
    GradientState._reset_state()


def prepared(**options: Any) -> tuple[Accelerator, nn.Module, Any, Any, hvd.DistributedOptimizer]:
    accelerator = Accelerator(cpu=True, **options)
    model = Linear()
    ours = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), sync_period=3
    )
    scheduler = torch.optim.lr_scheduler.StepLR(ours, step_size=2, gamma=0.5)
    model_, optimizer, scheduler_ = accelerator.prepare(model, ours, scheduler)
    return accelerator, model_, optimizer, scheduler_, ours


def run(
    accelerator: Accelerator, model: nn.Module, optimizer: Any, scheduler: Any, steps: range
) -> None:
    for step in steps:
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, step))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


@pytest.mark.ranks(1, 2)
def test_it_trains_as_the_plain_loop_does() -> None:
    accelerator, model, optimizer, scheduler, ours = prepared()
    run(accelerator, model, optimizer, scheduler, range(7))
    plain = Linear()
    by_hand = hvd.DistributedOptimizer(
        torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9), sync_period=3
    )
    its_scheduler = torch.optim.lr_scheduler.StepLR(by_hand, step_size=2, gamma=0.5)
    train(plain, by_hand, range(7), after_step=its_scheduler.step)
    assert same(weights(model), weights(plain))
    ours.flush()
    assert equal_on_all_ranks(model)


@pytest.mark.ranks(1, 2)
def test_gradient_accumulation_counts_optimizer_steps() -> None:
    accelerator, model, optimizer, scheduler, ours = prepared(gradient_accumulation_steps=2)
    run(accelerator, model, optimizer, scheduler, range(8))
    assert ours.sync_stats.last is not None
    assert (ours.sync_stats.syncs, ours.sync_stats.last.step) == (1, 3)


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("done", [0, 2, 3, 4])
def test_a_saved_state_resumes_bit_for_bit(tmp_path: Path, done: int) -> None:
    accelerator, model, optimizer, scheduler, _ = prepared()
    run(accelerator, model, optimizer, scheduler, range(done))
    accelerator.save_state(str(tmp_path))
    run(accelerator, model, optimizer, scheduler, range(done, 7))
    expected = weights(model)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator, model, optimizer, scheduler, _ = prepared()
    accelerator.load_state(str(tmp_path))
    run(accelerator, model, optimizer, scheduler, range(done, 7))
    assert same(weights(model), expected)


@pytest.mark.ranks(2)
def test_its_scaler_with_an_overflow_on_one_rank() -> None:
    Accelerator(cpu=True)
    weight = number(0.0)
    ours = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=1.0), sync_period=2, slow_momentum=0
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = AcceleratedOptimizer(ours, scaler=scaler)
    for step in range(4):
        optimizer.zero_grad()
        overflows = step == 0 and hvd.rank() == 0
        scaler.scale(weight.sum() * (math.inf if overflows else 1.0)).backward()
        optimizer.step()
    assert ours.sync_stats.syncs == 2
    assert weight.item() == -3.5


@pytest.mark.ranks(2)
@pytest.mark.parametrize("by", ["broadcast", "elastic state"])
def test_what_rank_0_alone_loaded_reaches_all_ranks_through_its_wrapper(by: str) -> None:
    accelerator, model, optimizer, scheduler, ours = prepared()
    run(accelerator, model, optimizer, scheduler, range(4))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator, model, optimizer, scheduler, ours = prepared()
    if hvd.rank() == 0:
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
    twice = AcceleratedOptimizer(optimizer, device_placement=False)
    if by == "broadcast":
        hvd.broadcast_parameters(model.state_dict(), root_rank=0)
        hvd.broadcast_optimizer_state(by_rank(optimizer, twice), 0)
    else:
        hvd.elastic.TorchState(model=model, optimizer=by_rank(twice, optimizer)).sync()
    assert ours.state_dict()["slowmo"]["step"] == 4
    run(accelerator, model, optimizer, scheduler, range(4, 6))
    assert ours.sync_stats.syncs == 1
    assert equal_on_all_ranks(model)


@pytest.mark.ranks(1)
def test_what_accelerate_has_prepared_is_not_wrapped() -> None:
    _, _, optimizer, _, _ = prepared()
    with pytest.raises(ValueError, match="is a DistributedOptimizer already"):
        hvd.DistributedOptimizer(optimizer)
    bare = AcceleratedOptimizer(torch.optim.SGD([number(0.0)], lr=1.0))
    with pytest.raises(
        ValueError, match=r"give DistributedOptimizer\(optimizer\) to accelerator.pre"
    ):
        hvd.DistributedOptimizer(bare)


@pytest.mark.ranks(2)
def test_a_bare_optimizer_that_accelerate_prepared_is_horovods_to_broadcast() -> None:
    Accelerator(cpu=True)
    inner = torch.optim.SGD([number(0.0)], lr=by_rank(1.0, 2.0), momentum=0.9)
    optimizer = AcceleratedOptimizer(inner)
    step_with(inner, 1.0)
    hvd.elastic.TorchState(optimizer=optimizer).sync()
    assert optimizer.param_groups[0]["lr"] == 1.0
