"""torch's optimizer hooks fire once each, and see the wrapped optimizer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import number, step_with
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

import slowmo_hvd.torch as hvd


def wrapped(**options: Any) -> hvd.DistributedOptimizer:
    return hvd.DistributedOptimizer(torch.optim.SGD([number(0.0)], lr=1.0), **options)


@pytest.mark.ranks(1, 2)
def test_step_hooks_fire_once_a_step_around_the_sync() -> None:
    optimizer = wrapped(sync_period=2)
    seen: list[tuple[str, int]] = []
    optimizer.register_step_pre_hook(
        lambda opt, args, kwargs: seen.append(("before", opt.sync_stats.syncs))
    )
    optimizer.register_step_post_hook(
        lambda opt, args, kwargs: seen.append(("after", opt.sync_stats.syncs))
    )
    step_with(optimizer, 1.0)
    step_with(optimizer, 1.0)
    assert seen == [("before", 0), ("after", 0), ("before", 0), ("after", 1)]


@pytest.mark.ranks(1)
def test_a_step_pre_hook_may_replace_the_closure() -> None:
    optimizer = wrapped(sync_period=2)
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: ((opt, lambda: 7.0), kwargs))
    assert optimizer.step(lambda: 1.0) == 7


@pytest.mark.ranks(1, 2)
def test_global_step_hooks_fire_once_a_step() -> None:
    optimizer = wrapped(sync_period=1)
    seen: list[str] = []
    before = register_optimizer_step_pre_hook(lambda *_: seen.append("before"))
    after = register_optimizer_step_post_hook(lambda *_: seen.append("after"))
    try:
        step_with(optimizer, 1.0)
    finally:
        before.remove()
        after.remove()
    assert seen == ["before", "after"]


@pytest.mark.ranks(1)
def test_the_inner_optimizers_own_hooks_still_fire() -> None:
    inner = torch.optim.SGD([number(0.0)], lr=1.0)
    seen: list[torch.optim.Optimizer] = []
    inner.register_step_post_hook(lambda opt, args, kwargs: seen.append(opt))
    step_with(hvd.DistributedOptimizer(inner), 1.0)
    assert seen == [inner]


@pytest.mark.ranks(1)
def test_state_dict_hooks_see_and_change_the_whole_state() -> None:
    optimizer = wrapped()
    seen: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda opt: seen.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda opt, state: {**state, "note": "mine"})
    state = optimizer.state_dict()
    assert seen == ["before saving"]
    assert state["note"] == "mine"
    assert "slowmo" in state

    optimizer.register_load_state_dict_pre_hook(
        lambda opt, state: {key: value for key, value in state.items() if key != "note"}
    )
    optimizer.register_load_state_dict_post_hook(lambda opt: seen.append("after loading"))
    optimizer.load_state_dict(state)
    assert seen == ["before saving", "after loading"]


@pytest.mark.ranks(1)
def test_a_removed_hook_is_silent() -> None:
    optimizer = wrapped(sync_period=1)
    seen: list[Any] = []
    handles = [
        optimizer.register_step_post_hook(lambda *_: seen.append(1)),
        optimizer.register_sync_hook(seen.append),
    ]
    for handle in handles:
        handle.remove()
    step_with(optimizer, 1.0)
    assert seen == []


@pytest.mark.ranks(1)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_clears_as_asked(set_to_none: bool) -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0))
    weight.grad = torch.ones(1)
    optimizer.zero_grad(set_to_none=set_to_none)
    if set_to_none:
        assert weight.grad is None
    else:
        assert weight.grad.item() == 0


@pytest.mark.ranks(1, 2)
def test_a_hook_may_remove_itself() -> None:
    optimizer = wrapped(sync_period=1)
    seen: list[str] = []
    handles: dict[str, RemovableHandle] = {}

    def once(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            seen.append(name)
            handles[name].remove()

        return hook

    handles["before"] = optimizer.register_step_pre_hook(once("before"))
    handles["sync"] = optimizer.register_sync_hook(once("sync"))
    handles["after"] = optimizer.register_step_post_hook(once("after"))
    optimizer.register_sync_hook(lambda record: seen.append(f"step {record.step}"))
    step_with(optimizer, 1.0)
    step_with(optimizer, 1.0)
    assert seen == ["before", "sync", "step 1", "after", "step 2"]
