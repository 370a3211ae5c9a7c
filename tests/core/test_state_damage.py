"""Thousands of damaged states: each is a ValueError, or good and comes back as it was."""

import copy
from typing import Any

import numpy as np
from damage import SEEDS, Count, damaged, many, refused
from hypothesis import given

from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.form import array_form
from slowmo_hvd.core.schedule import MeanLearningRate, Schedule
from slowmo_hvd.core.state import check_state, pack_inner, pack_state, unpack_counters

CONFIG = SlowMoConfig(sync_period=4, slow_momentum=0.5, warmup_steps=2)
SHAPES = [(3,), (2, 2), (4,)]
FROZEN = [2]
INNER_STATE = {
    "state": {0: {"m": np.ones(3), "step": 4}, 1: {"m": np.ones((2, 2)), "step": 4}},
    "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0, 1], "foreach": None}],
}


def tensors() -> dict[int, Any]:
    return {position: np.full(shape, 0.5) for position, shape in enumerate(SHAPES[:2])}


def inner_of(state: Any) -> dict[str, Any]:
    return pack_inner("SGD", SHAPES, state, array_form)


def whole() -> dict[str, Any]:
    schedule = Schedule(CONFIG)
    vars(schedule).update(step=17, windows=[3], positions=[3])
    rates = [[MeanLearningRate(0.375, 3)]]
    inner = inner_of(INNER_STATE)
    slow = pack_state(CONFIG, schedule, rates, tensors(), tensors(), inner, FROZEN)
    return copy.deepcopy({**INNER_STATE, "slowmo": slow})


def fault(name: str, position: int, tensor: Any) -> str | None:
    if not isinstance(tensor, np.ndarray) or tensor.dtype != np.float64:
        return "is no array of float64"
    return None if np.isfinite(tensor).all() else "is not finite"


TENSOR_CHANGES = [
    lambda tensor, _: tensor.T,
    lambda tensor, _: tensor[:-1],
    lambda tensor, _: tensor.reshape(-1),
    lambda tensor, _: tensor.reshape(1, -1),
    lambda tensor, _: tensor.astype("float32"),
    lambda tensor, _: tensor.astype("int64"),
    lambda tensor, _: tensor * np.nan,
    lambda tensor, _: tensor * np.inf,
    lambda tensor, number: np.where(np.arange(tensor.size) == number % 3, np.nan, 1.0)[:3],
    lambda tensor, _: tensor.tolist(),
    lambda tensor, number: tensor + number,
    lambda tensor, _: np.zeros(()),
]
COUNT = Count()


@many(9000)
@given(SEEDS)
def load_damaged(seeds: list[int]) -> None:
    for seed in seeds:
        COUNT.add(load(damaged(whole(), seed, TENSOR_CHANGES)))


def load(state: Any) -> bool:
    """Check it and, if it is good, load it; return whether it is."""
    kept = copy.deepcopy(state)
    inner = {key: value for key, value in state.items() if key != "slowmo"}
    slow = state.get("slowmo")
    good = not refused(lambda: check_state(slow, CONFIG, 1, SHAPES, inner_of(inner), fault))
    if good:
        assert isinstance(slow, dict)
        schedule = Schedule(CONFIG)
        rates = unpack_counters(slow, schedule)
        again = pack_state(
            CONFIG,
            schedule,
            rates,
            slow["anchor"],
            slow["momentum"],
            inner_of(inner),
            slow["frozen"],
            samples=slow["samples"],
        )
        assert same(again, kept["slowmo"])
    assert same(state, kept)  # a check changes nothing
    return good


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, np.ndarray):
        return isinstance(theirs, np.ndarray) and ours.tobytes() == theirs.tobytes()
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs) or ours != ours


def test_every_damaged_state_is_refused_or_comes_back_as_it_was() -> None:
    load_damaged()
    assert COUNT.all >= 9000, COUNT
    assert COUNT.refused > COUNT.loaded > 100, COUNT
