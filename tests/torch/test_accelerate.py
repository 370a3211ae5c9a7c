"""Accelerate, as a user writes it: prepare, backward, accumulate, save_state and load_state."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from models import Linear, loss_of, number, same, train, weights
from ranks import equal_on_all_ranks
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
