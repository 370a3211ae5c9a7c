"""Checkpoints: complete, plain, checked wholly before anything changes, and exact."""

import copy
import io
import logging
import pickle
from collections.abc import Callable
from typing import Any

import horovod.torch
import pytest
import torch
from inner_optimizers import INNER, Inner
from models import Linear, identical, number, same, step_with, train, weights
from ranks import equal_on_all_ranks, everyone
from torch import nn

import slowmo_hvd.torch as hvd

STEPS = 7
SETTINGS: dict[str, Any] = {"sync_period": 3, "slow_momentum": 0.5}

State = dict[str, Any]


def through_a_file(state: Any) -> Any:
    """What a user gets back who saves, and loads with torch's safe default."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def wrapped(inner: Inner, model: nn.Module, **options: Any) -> hvd.DistributedOptimizer:
    settings = SETTINGS | {"buffers": inner.strategy} | options
    return hvd.DistributedOptimizer(inner.make(model.parameters()), **settings)


def goes_on_bit_for_bit(name: str, strategy: str, dtype: torch.dtype) -> None:
    """Resume a run of two windows and a half at each position of the first, and after it."""
    inner = INNER[name]
    model = inner.model(dtype)
    optimizer = wrapped(inner, model, buffers=strategy)
    saved: list[tuple[State, State]] = []

    def save() -> None:
        saved.append(through_a_file((model.state_dict(), optimizer.state_dict())))

    save()
    train(model, optimizer, range(STEPS), closure=inner.closure, after_step=save)
    for done, (model_state, state) in enumerate(saved[:5]):
        resumed = inner.model(dtype)
        fresh = wrapped(inner, resumed, buffers=strategy)
        resumed.load_state_dict(model_state)
        fresh.load_state_dict(state)
        train(resumed, fresh, range(done, STEPS), closure=inner.closure)
        assert same(weights(resumed), weights(model)), f"resumed after {done} steps"


@pytest.mark.ranks(1)
@pytest.mark.parametrize(
    ("name", "dtype"), [(name, dtype) for name, inner in INNER.items() for dtype in inner.dtypes]
)
def test_resuming_at_any_step_goes_on_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    goes_on_bit_for_bit(name, INNER[name].strategy, dtype)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("SGD", "reset"),
        ("SGD", "average"),
        ("Adam", "maintain"),
        ("Adam", "average"),
        ("Adagrad", "reset"),
        ("LBFGS", "reset"),
        ("the user's own", "average"),
    ],
)
def test_several_ranks_resume_bit_for_bit(name: str, strategy: str, dtype: torch.dtype) -> None:
    goes_on_bit_for_bit(name, strategy, dtype)


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("options", [{"nesterov": True}, {"slow_momentum": 0}, {"warmup_steps": 4}])
def test_every_form_of_the_outer_step_resumes_bit_for_bit(options: dict[str, Any]) -> None:
    inner = INNER["SGD"]
    model, resumed = Linear(), Linear()
    optimizer, fresh = wrapped(inner, model, **options), wrapped(inner, resumed, **options)
    train(model, optimizer, range(5))
    resumed.load_state_dict(through_a_file(model.state_dict()))
    fresh.load_state_dict(through_a_file(optimizer.state_dict()))
    train(model, optimizer, range(5, 12))
    train(resumed, fresh, range(5, 12))
    assert same(weights(resumed), weights(model))


@pytest.mark.ranks(1, 2)
def test_a_scheduler_resumes_with_the_windows_learning_rates() -> None:
    def everything() -> tuple[nn.Parameter, hvd.DistributedOptimizer, Any]:
        weight = number(0.0)
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), **SETTINGS)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return weight, optimizer, scheduler

    def go_on(optimizer: hvd.DistributedOptimizer, scheduler: Any, steps: int) -> None:
        for _ in range(steps):
            step_with(optimizer, 1.0)
            scheduler.step()

    weight, optimizer, scheduler = everything()
    go_on(optimizer, scheduler, 2)
    resumed, fresh, its_scheduler = everything()
    resumed.data.copy_(weight.data)
    fresh.load_state_dict(through_a_file(optimizer.state_dict()))
    its_scheduler.load_state_dict(scheduler.state_dict())
    go_on(optimizer, scheduler, 4)
    go_on(fresh, its_scheduler, 4)
    assert resumed.item() == weight.item()
    assert fresh.sync_stats.last is not None
    assert optimizer.sync_stats.last is not None
    assert fresh.sync_stats.last.learning_rates == optimizer.sync_stats.last.learning_rates


@pytest.mark.ranks(1)
@pytest.mark.parametrize("name", INNER)
def test_the_state_holds_builtins_and_tensors_only(name: str) -> None:
    inner = INNER[name]
    model = inner.model(torch.bfloat16)
    optimizer = wrapped(inner, model)
    train(model, optimizer, range(4), closure=inner.closure)

    def check(value: Any) -> None:
        if type(value) is dict:
            for key, item in value.items():
                assert type(key) in (str, int)
                check(item)
        elif type(value) in (list, tuple):
            for item in value:
                check(item)
        else:
            assert value is None or type(value) in (torch.Tensor, int, float, bool, str)

    state = optimizer.state_dict()
    assert set(state) == {"state", "param_groups", "slowmo"}
    check(state["slowmo"])
    assert set(state["slowmo"]["anchor"]) == set(range(len(list(model.parameters()))))
    through_a_file(state)


@pytest.mark.ranks(1)
@pytest.mark.parametrize("name", ["SGD", "Adam", "LBFGS"])
def test_loading_brings_the_very_state_that_was_saved(name: str) -> None:
    inner = INNER[name]
    model = inner.model(torch.bfloat16)
    optimizer = wrapped(inner, model)
    for steps in (0, 1, 3):
        train(model, optimizer, range(steps), closure=inner.closure)
        saved = copy.deepcopy(optimizer.state_dict())
        fresh = wrapped(inner, copy.deepcopy(model))
        fresh.load_state_dict(through_a_file(saved))
        assert identical(fresh.state_dict(), saved)


@pytest.mark.ranks(1, 2)
def test_before_the_first_step_a_load_changes_nothing() -> None:
    """Accelerate saves and loads there."""
    trained = []
    for reload in (False, True):
        model = Linear()
        optimizer = wrapped(INNER["Adam"], model)
        if reload:
            optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
        train(model, optimizer, range(4))
        trained.append(weights(model))
    assert same(*trained)


@pytest.mark.ranks(1, 2)
def test_the_step_may_change_what_was_loaded_but_not_what_was_saved() -> None:
    model = Linear()
    optimizer = wrapped(INNER["Adam"], model)
    train(model, optimizer, range(4))
    state = copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(state)
    optimizer.load_state_dict(state)
    train(model, optimizer, range(4))
    assert identical(state["slowmo"], kept["slowmo"])


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("module", ["torch", "Horovod"])
def test_a_checkpoint_without_slow_state_loads_with_one_info_line(
    module: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = Linear()
    plain = torch.optim.Adam(first.parameters(), lr=0.3)
    if module == "Horovod":
        plain = horovod.torch.DistributedOptimizer(plain, first.named_parameters())
    train(first, plain, range(2))
    model = Linear()
    optimizer = hvd.DistributedOptimizer(
        torch.optim.Adam(model.parameters(), lr=0.1), sync_period=2
    )
    with caplog.at_level(logging.INFO, logger="slowmo_hvd"):
        optimizer.load_state_dict(through_a_file(plain.state_dict()))
    lines = [record for record in caplog.records if record.name == "slowmo_hvd"]
    assert [(line.levelno, line.getMessage()) for line in lines] == [
        (logging.INFO, "no slow state in this checkpoint: the slow momentum begins afresh")
    ]
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert optimizer.state[model.first]["step"].item() == 2
    train(model, optimizer, range(4))
    assert equal_on_all_ranks(model)


@pytest.mark.ranks(1)
def test_a_checkpoint_with_slow_state_loads_into_the_bare_optimizer() -> None:
    model = Linear()
    optimizer = wrapped(INNER["Adam"], model)
    train(model, optimizer, range(4))
    bare = INNER["Adam"].make(model.parameters())
    bare.load_state_dict(through_a_file(optimizer.state_dict()))
    assert bare.state[model.first]["step"].item() == 4


@pytest.mark.ranks(1)
@pytest.mark.parametrize(
    ("setting", "other"),
    [
        ("sync_period", 4),
        ("slow_lr", 0.5),
        ("slow_momentum", 0.25),
        ("nesterov", True),
        ("buffers", "reset"),
        ("warmup_steps", 9),
    ],
)
def test_other_settings_than_the_saved_are_refused_with_both_values(
    setting: str, other: Any
) -> None:
    model = Linear()
    optimizer = wrapped(INNER["SGD"], model)
    train(model, optimizer, range(2))
    saved = optimizer.state_dict()
    ours = saved["slowmo"]["config"][setting]
    changed = wrapped(INNER["SGD"], Linear(), **{setting: other})
    text = f"saved with {setting}={ours!r} and this optimizer has {setting}={other!r}"
    with pytest.raises(ValueError, match=text):
        changed.load_state_dict(saved)


def _damage(change: Callable[[State], object]) -> Callable[[State], State]:
    def damaged(state: State) -> State:
        state = copy.deepcopy(state)
        change(state)
        return state

    return damaged


DAMAGED: dict[str, Callable[[State], State]] = {
    "a later version": _damage(lambda state: state["slowmo"].update(version=99)),
    "no version": _damage(lambda state: state["slowmo"].pop("version")),
    "no anchor": _damage(lambda state: state["slowmo"].pop("anchor")),
    "an anchor emptied": _damage(lambda state: state["slowmo"]["anchor"].clear()),
    "one anchor lost": _damage(lambda state: state["slowmo"]["anchor"].pop(0)),
    "an anchor of another shape": _damage(
        lambda state: state["slowmo"]["anchor"].update({0: torch.zeros(5)})
    ),
    "an anchor that is no tensor": _damage(lambda state: state["slowmo"]["anchor"].update({0: 1})),
    "no momentum": _damage(lambda state: state["slowmo"]["momentum"].clear()),
    "a negative count": _damage(lambda state: state["slowmo"].update(step=-1)),
    "a count that is no int": _damage(lambda state: state["slowmo"].update(window="1")),
    "a position past the window": _damage(lambda state: state["slowmo"].update(position=7)),
    "learning rates of other groups": _damage(
        lambda state: state["slowmo"].update(lr_total=[1.0, 1.0])
    ),
    "a learning rate that is no number": _damage(
        lambda state: state["slowmo"].update(lr_total=[float("nan")])
    ),
    "something unknown": _damage(lambda state: state["slowmo"].update(more=1)),
    "a list in its place": _damage(lambda state: state.update(slowmo=[])),
    "no parameter groups": _damage(lambda state: state.update(param_groups=[])),
    "a group of another size": _damage(lambda state: state["param_groups"][0]["params"].pop()),
    "no state": _damage(lambda state: state.pop("state")),
}


@pytest.mark.ranks(1)
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(damage: str) -> None:
    model = Linear()
    optimizer = wrapped(INNER["SGD"], model)
    train(model, optimizer, range(4))
    damaged = DAMAGED[damage](optimizer.state_dict())
    train(model, optimizer, [4])
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"^cannot load this SlowMo state: "):
        optimizer.load_state_dict(damaged)
    assert identical(optimizer.state_dict(), before)


@pytest.mark.ranks(1)
def test_a_checkpoint_of_another_model_is_refused() -> None:
    model = Linear()
    optimizer = wrapped(INNER["SGD"], model)
    train(model, optimizer, range(2))
    other = nn.Linear(3, 4)
    with pytest.raises(ValueError, match=r"parameter 0 has shape \[4, 3\], and \[3, 4\] was saved"):
        wrapped(INNER["SGD"], other).load_state_dict(optimizer.state_dict())


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("name", ["SGD", "Adam", "Adagrad", "Muon", "the user's own"])
def test_a_copy_goes_on_as_its_original_does(name: str, way: str) -> None:
    inner = INNER[name]
    model = inner.model(torch.float32)
    optimizer = wrapped(inner, model)
    train(model, optimizer, range(4))
    pair = (model, optimizer)
    if way == "deepcopy":
        model_copy, optimizer_copy = copy.deepcopy(pair)
    elif "the" in name or name == "SGD":
        model_copy, optimizer_copy = pickle.loads(pickle.dumps(pair))
    else:
        model_copy, optimizer_copy = pickle.loads(pickle.dumps(pair, protocol=2))
    train(model, optimizer, range(4, 8))
    train(model_copy, optimizer_copy, range(4, 8))
    assert same(weights(model_copy), weights(model))
    assert all(
        ours.data_ptr() != theirs.data_ptr()
        for ours, theirs in zip(model.parameters(), model_copy.parameters(), strict=True)
    )


@pytest.mark.ranks(1, 2)
def test_a_copy_begins_its_own_hooks_and_statistics() -> None:
    model = Linear()
    optimizer = wrapped(INNER["SGD"], model)
    seen: list[Any] = []
    optimizer.register_sync_hook(seen.append)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)  # patches step()
    train(model, optimizer, range(3))
    scheduler.step()
    model_copy, optimizer_copy = copy.deepcopy((model, optimizer))
    assert optimizer_copy.sync_stats.syncs == 0
    train(model_copy, optimizer_copy, range(3))
    assert len(seen) == 1
    assert (optimizer.sync_stats.syncs, optimizer_copy.sync_stats.syncs) == (1, 1)


@pytest.mark.ranks(2)
def test_a_load_on_one_rank_alone_is_an_error_on_all() -> None:
    model = Linear()
    optimizer = wrapped(INNER["SGD"], model)
    train(model, optimizer, range(4))
    fresh = wrapped(INNER["SGD"], model)
    if hvd.rank() == 0:
        fresh.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="after loading a checkpoint on some ranks only") as raised:
        train(model, fresh, [4])
    assert len(set(everyone(str(raised.value)))) == 1
    assert "whether there is a slow state: 1 on rank 0, 0 on rank 1" in str(raised.value)
