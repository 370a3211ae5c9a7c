"""Parameters that a script replaces, adds, removes or reorders: all ranks alike, or one error."""

import copy
import logging
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import Linear, number, step_with, train
from ranks import by_rank, equal_on_all_ranks, everyone, same_error_everywhere
from torch import nn

import slowmo_hvd.torch as hvd

SETTINGS: dict[str, Any] = {"sync_period": 2, "slow_momentum": 0.5}


def sgd(*params: nn.Parameter, **options: Any) -> hvd.DistributedOptimizer:
    return hvd.DistributedOptimizer(torch.optim.SGD(params, lr=1.0), **(SETTINGS | options))


def slow(optimizer: hvd.DistributedOptimizer) -> dict[str, Any]:
    state: dict[str, Any] = optimizer.state_dict()["slowmo"]
    return state


def replace(optimizer: hvd.DistributedOptimizer, place: int, param: nn.Parameter) -> None:
    params = list(optimizer.param_groups[0]["params"])
    params[place] = param
    optimizer.param_groups[0]["params"] = params


@pytest.mark.ranks(1, 2)
def test_a_new_head_in_the_place_of_the_old_is_averaged_and_the_old_is_let_go() -> None:
    body, head, new = number(0.0), number(0.0), number(by_rank(5.0, 7.0))
    optimizer = sgd(body, head)
    for _ in range(2):
        step_with(optimizer, 1.0, 2.0)  # u = 2 and 4
    replace(optimizer, 1, new)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step_with(optimizer, 0.0, by_rank(1.0, 3.0))
    assert len(caught) == hvd.rank()
    assert all("takes rank 0's" in str(warning.message) for warning in caught)
    step_with(optimizer, 0.0, by_rank(1.0, 3.0))
    moved = 2 if hvd.size() == 1 else 4
    assert (body.item(), new.item()) == (-3, 5 - moved)
    for _ in range(2):
        step_with(optimizer, 0.0, 0.0)
    assert (body.item(), new.item()) == (-3.5, 5 - 1.5 * moved)
    assert head.item() == -4  # its slow momentum has gone
    assert set(slow(optimizer)["anchor"]) == {0, 1}


@pytest.mark.ranks(2)
def test_a_group_that_takes_the_place_of_a_deleted_one_as_long_begins_afresh() -> None:
    kept, old, new = number(0.0), number(0.0), number(0.0)
    optimizer = sgd(kept)
    optimizer.add_param_group({"params": [old], "lr": 0.5})
    for _ in range(2):
        step_with(optimizer, 1.0, 1.0)
    del optimizer.param_groups[1]
    optimizer.add_param_group({"params": [new], "lr": 0.25})
    for _ in range(2):
        step_with(optimizer, 0.0, by_rank(2.0, 6.0))
    assert (kept.item(), old.item(), new.item()) == (-3, -1, -2)
    assert slow(optimizer)["momentum"][1].item() == 8  # d̄ = 2, γ = 0.25
    assert optimizer.sync_stats.last is not None
    assert optimizer.sync_stats.last.learning_rates == (1, 0.25)


@pytest.mark.ranks(1, 2)
def test_a_group_deleted_inside_a_window_takes_its_gamma_along() -> None:
    deleted, kept = number(0.0), number(0.0)
    optimizer = sgd(deleted)
    optimizer.add_param_group({"params": [kept], "lr": 0.5})
    step_with(optimizer, 1.0, 1.0)
    del optimizer.param_groups[0]
    optimizer.param_groups[0]["lr"] = 0.25
    step_with(optimizer, 1.0)
    assert (deleted.item(), kept.item()) == (-1, -0.75)
    assert optimizer.sync_stats.last is not None
    assert optimizer.sync_stats.last.learning_rates == (0.375,)
    for _ in range(2):
        step_with(optimizer, 0.0)
    assert kept.item() == -0.75 - 0.25 * 0.5 * 2  # u = 0.75 / 0.375


@pytest.mark.ranks(1, 2)
def test_groups_in_another_order_keep_their_own_gamma_and_slow_momentum() -> None:
    fast, late = number(0.0), number(0.0)
    optimizer = sgd(fast)
    optimizer.add_param_group({"params": [late], "lr": 0.5})
    for _ in range(3):
        step_with(optimizer, 1.0, 1.0)
    optimizer.param_groups.reverse()
    step_with(optimizer, 1.0, 1.0)
    assert (late.item(), fast.item()) == (-2.5, -5)  # d̄ + γ β u: 1 + 0.5 · 0.5 · 2 and 2 + 0.5 · 2
    assert optimizer.sync_stats.last is not None
    assert optimizer.sync_stats.last.learning_rates == (0.5, 1)


CHANGES: dict[str, Callable[[hvd.DistributedOptimizer], object]] = {
    "replaces one": lambda optimizer: replace(optimizer, 1, number(0.0)),
    "freezes one": lambda optimizer: optimizer.param_groups[0]["params"][1].requires_grad_(False),
    "adds one": lambda optimizer: optimizer.add_param_group({"params": [number(0.0)]}),
    "removes one": lambda optimizer: optimizer.param_groups[0]["params"].pop(),
}


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("others", ["step on", "flush"])
@pytest.mark.parametrize("compression", [hvd.Compression.none, hvd.Compression.fp16])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_on_one_rank_alone_is_an_error_on_all_and_no_hang(
    change: str, compression: Any, others: str
) -> None:
    first, second = number(0.0), number(0.0)
    optimizer = sgd(first, second, sync_period=3, compression=compression)
    step_with(optimizer, 1.0, 1.0)

    def go_on() -> None:
        if hvd.rank() == 1:
            optimizer.step()
        elif others == "flush":
            optimizer.flush()
        else:
            step_with(optimizer, 1.0, 1.0)
            step_with(optimizer, 1.0, 1.0)

    if hvd.rank() == 1:
        CHANGES[change](optimizer)
    unchanged = "rank 0" if hvd.size() == 2 else "ranks 0, 2"
    same_error_everywhere(
        RuntimeError,
        f"rank 1 changed which parameters to train, and {unchanged} did not: freeze, thaw, add",
        go_on,
    )
    assert optimizer.sync_stats.syncs == 0
    assert first.item() == (-3 if others == "step on" and hvd.rank() != 1 else -1)
    assert len(everyone(None)) == hvd.size()  # and Horovod still works


@pytest.mark.ranks(2)
def test_ranks_that_go_on_after_that_error_learn_that_their_steps_differ() -> None:
    first, second = number(0.0), number(0.0)
    optimizer = sgd(first, second, sync_period=1)
    step_with(optimizer, 1.0, 1.0)
    if hvd.rank() == 0:
        second.requires_grad_(False)
    with pytest.raises(RuntimeError, match="rank 0 changed which parameters to train"):
        optimizer.step()
    second.requires_grad_(False)
    # Rank 1 counted that step, and rank 0 had not begun it.
    same_error_everywhere(RuntimeError, "the ranks are in different syncs", optimizer.step)


@pytest.mark.ranks(2)
def test_ranks_that_replaced_different_parameters_are_told_which() -> None:
    optimizer = sgd(number(0.0), number(0.0))
    step_with(optimizer, 1.0, 1.0)
    replace(optimizer, hvd.rank(), number(0.0))
    same_error_everywhere(
        ValueError,
        r"earlier positions of the parameters \(-1: new\): number 0 is -1 on rank 0, 0 on rank 1",
        lambda: step_with(optimizer, 1.0, 1.0),
    )


@pytest.mark.ranks(2)
@pytest.mark.parametrize("named_to", ["SlowMo", "torch"])
def test_an_order_that_differs_between_the_ranks_is_found_by_the_names(named_to: str) -> None:
    weights = {"a": number(0.0), "b": number(0.0)}
    names = by_rank(["a", "b"], ["b", "a"])  # as list(set(...)) may have them
    params: list[Any] = [weights[name] for name in names]
    if named_to == "torch":
        optimizer = sgd(*zip(names, params, strict=True))  # type: ignore[arg-type]
    else:
        optimizer = sgd(*params, named_parameters=weights.items())
    same_error_everywhere(
        ValueError,
        "the ranks differ in names of the parameters: number 0 is 'a' on rank 0, 'b' on rank 1",
        lambda: step_with(optimizer, 1.0, 1.0),
    )


@pytest.mark.ranks(2)
def test_an_order_that_comes_to_differ_is_found_too() -> None:
    weights = {name: number(0.0) for name in "abc"}
    optimizer = sgd(*weights.values(), named_parameters=weights.items())
    step_with(optimizer, 1.0, 1.0, 1.0)
    optimizer.param_groups[0]["params"] = [weights[name] for name in by_rank("bac", "acb")]
    same_error_everywhere(
        ValueError,
        "names of the parameters: number 0 is 'b' on rank 0, 'a' on rank 1",
        lambda: step_with(optimizer, 1.0, 1.0, 1.0),
    )


@pytest.mark.ranks(2)
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_knows_the_names_of_its_own_parameters(way: str) -> None:
    weights = {"a": number(0.0), "b": number(0.0)}
    optimizer = sgd(*weights.values(), named_parameters=weights.items())
    step_with(optimizer, 1.0, 1.0)
    copied = (
        copy.deepcopy(optimizer) if way == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    )
    copied.add_param_group({"params": [number(0.0)]})
    second, new = copied.param_groups[0]["params"][1], copied.param_groups[1]["params"][0]
    by_rank(second, new).requires_grad_(False)
    same_error_everywhere(
        ValueError,
        "frozen parameters: number 0 is 'b' on rank 0, 'parameter 0 of group 1' on rank 1",
        lambda: step_with(copied, 1.0, *by_rank([None, 1.0], [1.0, None])),
    )
    step_with(optimizer, 1.0, 1.0)  # the original goes on
    assert weights["a"].item() == -2


@pytest.mark.ranks(1, 2)
def test_one_info_line_tells_of_a_change(caplog: pytest.LogCaptureFixture) -> None:
    params = [number(0.0) for _ in range(4)]
    optimizer = sgd(*params, sync_period=5)
    step_with(optimizer, 1.0, 1.0, 1.0, 1.0)
    params[0].requires_grad_(False)
    optimizer.param_groups[0]["params"] = [params[0], params[1], number(0.0)]
    with caplog.at_level(logging.INFO, logger="slowmo_hvd"):
        for _ in range(2):
            step_with(optimizer, None, 1.0, 1.0)
    assert [record.getMessage() for record in caplog.records] == [
        "other parameters after 1 steps (1 frozen, 1 new, 2 removed): all ranks agree anew"
    ]


@pytest.mark.ranks(1, 2)
def test_a_checkpoint_between_a_replacement_and_the_next_step_loads() -> None:
    body, head = number(0.0), number(0.0)
    optimizer = sgd(body, head)
    for _ in range(3):
        step_with(optimizer, 1.0, 1.0)
    replace(optimizer, 1, number(8.0))
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    step_with(optimizer, 1.0, by_rank(1.0, 3.0))
    new = optimizer.param_groups[0]["params"][1]
    assert body.item() == -5  # d̄ = 2, u = 2
    assert new.item() == (7 if hvd.size() == 1 else 6)


# ---- other types and shapes ------------------------------------------------------------------


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("reload", [False, True])
def test_double_after_training_began_keeps_anchor_and_momentum_in_the_new_dtype(
    reload: bool,
) -> None:
    model = nn.ParameterList([number(0.0)])
    optimizer = sgd(*model)
    for _ in range(3):
        step_with(optimizer, 1.0)
    model.double()
    if reload:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step_with(optimizer, 2.0**-30)  # more digits than float32 has beside 1
    assert model[0].dtype == torch.float64
    assert model[0].item() == -2 - 1 - 2.0**-30 - 1  # x, d̄, γ β u
    assert [slow(optimizer)[name][0].dtype for name in ("anchor", "momentum")] == [
        torch.float64,
        torch.float64,
    ]


@pytest.mark.ranks(1, 2)
def test_half_precision_that_becomes_whole_has_not_moved_by_that() -> None:
    """The anchor has digits that bfloat16 could not show: they are no progress of a window."""
    model = nn.ParameterList([number(1.0, torch.bfloat16)])
    optimizer = sgd(*model, sync_period=1)
    step_with(optimizer, 0.0)
    optimizer.load_state_dict(_with_anchor(optimizer, 1 + 2.0**-12))
    step_with(optimizer, 0.0)
    assert slow(optimizer)["anchor"][0].item() == 1 + 2.0**-12
    model.float()
    step_with(optimizer, 0.0)
    assert slow(optimizer)["momentum"][0].item() == 0
    assert model[0].item() == 1


def _with_anchor(optimizer: hvd.DistributedOptimizer, value: float) -> dict[str, Any]:
    state = copy.deepcopy(optimizer.state_dict())
    state["slowmo"]["anchor"][0].fill_(value)
    return state


@pytest.mark.ranks(2)
def test_another_dtype_on_one_rank_alone_is_an_error_on_all() -> None:
    model = nn.ParameterList([number(0.0)])
    optimizer = sgd(*model)
    step_with(optimizer, 1.0)
    if hvd.rank() == 1:
        model.double()
    same_error_everywhere(
        RuntimeError, "rank 1 changed which parameters", lambda: step_with(optimizer, 1.0)
    )


@pytest.mark.ranks(2)
def test_a_parameter_of_another_shape_begins_afresh() -> None:
    grown, other = number(0.0), number(0.0)
    optimizer = sgd(grown, other)
    for _ in range(3):
        step_with(optimizer, 1.0, 1.0)
    with torch.no_grad():
        grown.data = torch.zeros(3)  # as an embedding that gets more words
    step_with(optimizer, 1.0, by_rank(1.0, 3.0))
    assert other.item() == -2 - 3 - 1  # x, d̄, γ β u
    assert grown.tolist() == [-1, -1, -1]
    assert equal_on_all_ranks([grown, other])


@pytest.mark.ranks(2)
def test_a_model_that_was_doubled_keeps_its_ranks_together() -> None:
    model = Linear()
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), **SETTINGS)
    train(model, optimizer, range(3))
    model.double()
    train(model, optimizer, range(3, 6))
    assert equal_on_all_ranks(model)
    assert optimizer.sync_stats.syncs == 3
