"""The slow state's schema: lossless, and every kind of damage is refused before it is used."""

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.form import array_form
from slowmo_hvd.core.schedule import MeanLearningRate, Schedule
from slowmo_hvd.core.schedules import qsr
from slowmo_hvd.core.state import (
    STATE_VERSION,
    check_state,
    migrated,
    pack_inner,
    pack_state,
    unpack_counters,
)

CONFIG = SlowMoConfig(sync_period=4, slow_momentum=0.5, slow_lr=0.75, warmup_steps=2)
SHAPES = [(3,), (2, 2), (4,)]
FROZEN = [2]


def inner_of(optimizer: str, shapes: list[tuple[int, ...]], state: Any) -> dict[str, Any]:
    return pack_inner(optimizer, shapes, state, array_form)


INNER = inner_of("SGD", SHAPES, {"state": {0: {"buffer": np.zeros(3)}}, "lr": 0.5})


def tensors() -> dict[int, Any]:
    return {position: np.full(shape, 0.5) for position, shape in enumerate(SHAPES[:2])}


def schedule_of(config: SlowMoConfig, **counters: Any) -> Schedule:
    schedule = Schedule(config)
    vars(schedule).update(counters)
    return schedule


def state(config: SlowMoConfig = CONFIG, **changes: Any) -> dict[str, Any]:
    """A good state in the middle of the fourth window, with ``changes``."""
    schedule = schedule_of(config, step=17, windows=[3], positions=[3])
    rates = [[MeanLearningRate(0.375, 3), MeanLearningRate(0.75, 3)]]
    momentum = tensors() if config.slow_momentum > 0 else {}
    return pack_state(config, schedule, rates, tensors(), momentum, INNER, FROZEN) | changes


def fault(name: str, position: int, tensor: Any) -> str | None:
    return None if np.isfinite(tensor).all() else "is not finite"


def check(saved: Any, config: SlowMoConfig = CONFIG) -> None:
    check_state(saved, config, groups=2, shapes=SHAPES, inner=INNER, fault=fault)


def complaint(saved: Any, config: SlowMoConfig = CONFIG) -> str:
    with pytest.raises(ValueError, match=r"^cannot load this SlowMo state: ") as caught:
        check(saved, config)
    return str(caught.value)


# ---- lossless --------------------------------------------------------------------------------


def test_a_state_is_good_and_gives_back_every_counter() -> None:
    saved = state()
    check(saved)
    schedule = Schedule(CONFIG)
    rates = unpack_counters(saved, schedule)
    assert vars(schedule) == vars(schedule_of(CONFIG, step=17, windows=[3], positions=[3]))
    assert rates == [[MeanLearningRate(0.375, 3), MeanLearningRate(0.75, 3)]]
    again = pack_state(CONFIG, schedule, rates, saved["anchor"], saved["momentum"], INNER, FROZEN)
    assert again == saved


def test_the_state_before_the_first_step_is_good() -> None:
    rates = [[MeanLearningRate(), MeanLearningRate()]]
    check(pack_state(CONFIG, Schedule(CONFIG), rates, {}, {}, INNER))


def test_the_state_without_slow_momentum_is_good() -> None:
    local = SlowMoConfig(sync_period=4, slow_momentum=0)
    check(state(local), local)


def test_the_state_is_builtins_but_for_its_tensors() -> None:
    saved = state() | {"anchor": {}, "momentum": {}, "inner": inner_of("SGD", SHAPES, [])}
    assert json.loads(json.dumps(saved)) == saved
    assert set(map(type, saved["lr_total"][0] + saved["lr_steps"][0])) == {float, int}


def test_learning_rates_that_are_containers_are_saved_as_floats() -> None:
    rates = [[MeanLearningRate(np.float32(0.5), 3)]]
    saved = pack_state(CONFIG, Schedule(CONFIG), rates, {}, {}, INNER)
    assert [type(total) for total in saved["lr_total"][0]] == [float]


def test_a_state_keeps_its_own_dicts() -> None:
    anchor = tensors()
    saved = pack_state(CONFIG, Schedule(CONFIG), [], anchor, {}, INNER)
    anchor.clear()
    assert set(saved["anchor"]) == {0, 1}


def test_a_state_saved_after_two_syncs_that_failed_is_good() -> None:
    schedule = Schedule(CONFIG)
    for _ in range(CONFIG.sync_period + 1):
        schedule.tick()
    rates = [[MeanLearningRate(0.5, *schedule.positions)] * 2]
    check(pack_state(CONFIG, schedule, rates, tensors(), tensors(), INNER, FROZEN))


def test_a_state_of_frozen_parameters_only_is_good() -> None:
    rates = [[MeanLearningRate()] * 2]
    schedule = schedule_of(CONFIG, step=3, windows=[1])
    check(pack_state(CONFIG, schedule, rates, {}, {}, INNER, [0, 1, 2]))


def of_version_3(saved: dict[str, Any]) -> dict[str, Any]:
    """The state as version 3 had it: τ was a number, and no samples were counted."""
    since = ("period", "gamma", "samples")
    old = {key: value for key, value in saved.items() if key not in since}
    return old | {"version": 3}


def test_a_state_of_version_3_is_good_and_says_the_same() -> None:
    old, expected = of_version_3(in_flight()), in_flight()
    check(old, OVERLAP)
    new = migrated(old)
    assert {name: str(value) for name, value in new.items()} == {
        name: str(value) for name, value in expected.items()
    }
    assert "its keys are" in complaint(old | {"gamma": [0.0, 0.0]}, OVERLAP)


GROWING = SlowMoConfig(sync_period=qsr(4, 0.2), overlap_steps=3)


def test_the_periods_of_a_schedule_are_saved_and_come_back() -> None:
    rates = [[MeanLearningRate(1.5, 15)] * 2]
    schedule = schedule_of(
        GROWING, step=19, windows=[1], positions=[15], periods=[16], gammas=[0.05]
    )
    saved = pack_state(GROWING, schedule, rates, tensors(), tensors(), INNER, FROZEN)
    check(saved, GROWING)
    again = Schedule(GROWING)
    unpack_counters(saved, again)
    assert (again.periods, again.gammas) == ([16], [0.05])
    assert "period is 3, which this sync_period" in complaint(saved | {"period": [3]}, GROWING)
    assert "gamma is nan, not a finite float" in complaint(saved | {"gamma": [np.nan]}, GROWING)
    other = SlowMoConfig(sync_period=qsr(4, 0.3), overlap_steps=3)
    assert "saved with sync_period='QSR(base=4, coefficient=0.2" in complaint(saved, other)


def test_a_period_that_is_a_number_cannot_be_another_one() -> None:
    assert "period is 5, which this sync_period cannot" in complaint(state(period=[5]))


def of_version_2(saved: dict[str, Any]) -> dict[str, Any]:
    """The state as version 2 had it: numbers where there is a list now, of one fragment."""
    since = ("landing", "launched", "period", "gamma", "samples")
    old = {key: value for key, value in saved.items() if key not in since}
    for name in ("window", "position", "lr_total", "lr_steps"):
        (old[name],) = saved[name]
    settings = {k: v for k, v in saved["config"].items() if k not in ("overlap_steps", "fragments")}
    return old | {"version": 2, "config": settings}


def test_a_state_of_version_2_is_good_and_says_the_same() -> None:
    old = of_version_2(state())
    check(old)
    new, expected = migrated(old), state()
    assert list(map(str, new.values())) == [str(expected[key]) for key in new]
    assert set(new) == set(expected)
    assert "its keys are" in complaint(old | {"landing": [0]})
    assert "window is 18 after 17 steps" in complaint(old | {"window": 18})


def test_a_state_of_version_1_is_good_without_saying_what_is_frozen() -> None:
    everyones = {position: np.full(shape, 0.5) for position, shape in enumerate(SHAPES)}
    saved = of_version_2(state(anchor=everyones, momentum=everyones)) | {"version": 1}
    del saved["frozen"]
    check(saved)
    assert migrated(saved)["frozen"] == []
    saved["frozen"] = []
    assert "its keys are" in complaint(saved)


@pytest.mark.parametrize(
    ("optimizer", "buffers"), [("SGD", "reset"), ("LBFGS", "reset"), ("Adam", "maintain")]
)
def test_what_auto_was_by_the_inner_optimizers_name(optimizer: str, buffers: str) -> None:
    saved = of_version_2(state())
    saved["config"]["buffers"] = "auto"
    saved["inner"] = saved["inner"] | {"optimizer": optimizer}
    assert migrated(saved)["config"]["buffers"] == buffers


def test_a_state_saved_under_auto_says_what_to_build_the_optimizer_with() -> None:
    saved = of_version_2(state())
    saved["config"]["buffers"] = "auto"
    saved["inner"] = saved["inner"] | {"optimizer": "SGD"}
    assert "build the optimizer with buffers='reset'" in complaint(saved)


# ---- fragments, and what is under way ------------------------------------------------------

# Parameters of 3, 4 and 4 elements, of which the first and the last are in the first fragment.
OVERLAP = SlowMoConfig(sync_period=4, slow_momentum=0.5, overlap_steps=3, fragments=2)


def in_flight(**changes: Any) -> dict[str, Any]:
    """A good state, in which the first fragment's average is under way."""
    schedule = schedule_of(OVERLAP, step=17, windows=[4, 4], positions=[1, 3], landings=[19, 0])
    rates = [[MeanLearningRate(0.1 * k, k)] * 2 for k in (1, 3)]
    tensors_ = tensors()
    launched = {0: tensors_[0]}
    return (
        pack_state(OVERLAP, schedule, rates, tensors_, tensors(), INNER, FROZEN, launched) | changes
    )


def test_what_is_under_way_is_saved_and_comes_back() -> None:
    saved = in_flight()
    check(saved, OVERLAP)
    schedule = Schedule(OVERLAP)
    unpack_counters(saved, schedule)
    assert (schedule.windows, schedule.positions, schedule.landings) == ([4, 4], [1, 3], [19, 0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"launched": {}}, "launched is missing"),
        ({"launched": tensors()}, "launched has 2 tensors, not those of 1"),
        ({"launched": {1: np.zeros((2, 2))}}, "launched has 1 tensors"),
        ({"launched": {0: np.full(3, np.nan)}}, "launched[0] is not finite"),
        ({"landing": [0, 0]}, "launched has 1 tensors, not those of 0"),
        ({"landing": [16, 0]}, "landing of fragment 0 is 16 after 17 steps"),
        ({"landing": [21, 0]}, "landing of fragment 0 is 21 after 17 steps"),
        ({"landing": [19]}, "landing has 1 entries and the optimizer has 2 fragments"),
        ({"window": [4, 18]}, "window of fragment 1 is 18 after 17 steps"),
        ({"position": [20, 0]}, "position of fragment 0 is 20 after 17 steps"),
    ],
)
def test_what_does_not_fit_what_is_under_way_is_refused(
    changes: dict[str, Any], words: str
) -> None:
    assert words in complaint(in_flight(**changes), OVERLAP)


# ---- damaged ---------------------------------------------------------------------------------


@pytest.mark.parametrize("saved", [[], "state", 3, {1, 2}])
def test_what_is_no_dict_is_refused(saved: Any) -> None:
    assert f"it is a {type(saved).__name__}, not a dict" in complaint(saved)


@pytest.mark.parametrize("key", state())
def test_a_missing_key_is_refused(key: str) -> None:
    saved = state()
    del saved[key]
    complaint(saved)


@pytest.mark.parametrize("key", state())
@pytest.mark.parametrize("junk", [None, "junk", -1, 0.5, math.nan, [], [None, None], {"x": 1}])
def test_junk_under_any_key_is_refused(key: str, junk: Any) -> None:
    complaint(state() | {key: junk})


def test_an_unknown_key_is_refused_and_named() -> None:
    assert "'velocity'" in complaint(state(velocity=1))


def test_keys_that_are_no_strings_are_refused() -> None:
    complaint(state() | {3: 4})


def test_another_version_is_refused_and_a_newer_one_says_to_upgrade() -> None:
    assert "upgrade slowmo_hvd" in complaint(state(version=STATE_VERSION + 1))
    assert "upgrade" not in complaint(state(version=0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sync_period", 8),
        ("slow_lr", 1.0),
        ("slow_momentum", 0.25),
        ("nesterov", True),
        ("buffers", "average"),
        ("warmup_steps", 0),
    ],
)
def test_another_configuration_is_refused_with_both_values_and_two_ways_out(
    name: str, value: Any
) -> None:
    saved = state()
    ours = saved["config"][name]
    saved["config"][name] = value
    message = complaint(saved)
    assert f"saved with {name}={value!r} and this optimizer has {name}={ours!r}" in message
    assert f"build the optimizer with {name}={value!r}" in message
    assert "without its" in message


@pytest.mark.parametrize("name", CONFIG.arithmetic())
def test_a_setting_that_is_missing_or_of_another_type_is_refused(name: str) -> None:
    without = state()
    del without["config"][name]
    complaint(without)
    other = state()
    other["config"][name] = None
    complaint(other)


def test_a_setting_that_equals_ours_but_for_its_type_is_refused() -> None:
    saved = state()
    saved["config"]["nesterov"] = 0
    complaint(saved)


@pytest.mark.parametrize("name", ["step", "window", "position", "landing"])
@pytest.mark.parametrize("value", [-1, 2.0, True, None, "3", 2**53])
def test_a_counter_that_is_no_count_is_refused_and_named(name: str, value: Any) -> None:
    damaged = state(**{name: value if name == "step" else [value]})
    assert f"{name} is {value!r}, not an int >= 0 and < 2**53" in complaint(damaged)


@pytest.mark.parametrize("name", ["window", "position"])
def test_more_counted_than_steps_taken_is_refused(name: str) -> None:
    assert f"{name} is 18 after 17 steps" in complaint(state() | {name: [18]})


@pytest.mark.parametrize(
    "changes",
    [
        {"lr_total": [[0.1]]},
        {"lr_steps": [[1, 1, 1]]},
        {"lr_total": [[0.1, math.inf]]},
        {"lr_steps": [[1, 18]]},  # of 17
        {"lr_steps": [[3, 0]]},  # beside a total of 0.75
        {"lr_total": [[0.1, math.nan]]},
        {"lr_total": [[0.1, 1e300]]},  # no float32 holds γ u, which would break off a sync
        {"lr_total": [[0.1, 1]]},
        {"lr_total": [(0.1, 0.2)]},
        {"lr_steps": [[1, -1]]},
        {"lr_steps": [[1, 1.0]]},
        {"lr_steps": [[1, True]]},
        {"lr_steps": [{0: 1, 1: 1}]},
    ],
)
def test_damaged_learning_rates_are_refused(changes: dict[str, Any]) -> None:
    (name,) = changes
    assert name in complaint(state(**changes))


def test_another_number_of_groups_is_told_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="2 entries and the optimizer has 3 parameter groups"):
        check_state(state(), CONFIG, groups=3, shapes=SHAPES, inner=INNER, fault=fault)


def drop(position: int) -> Callable[[dict[int, Any]], None]:
    return lambda of_all: of_all.__delitem__(position)


def put(position: Any, value: Any) -> Callable[[dict[Any, Any]], None]:
    return lambda of_all: of_all.__setitem__(position, value)


@pytest.mark.parametrize("name", ["anchor", "momentum"])
@pytest.mark.parametrize(
    "damage",
    [
        drop(0),
        drop(1),
        put(2, np.zeros(3)),
        put("0", np.zeros(3)),
        put(0, np.zeros(4)),
        put(0, np.zeros((3, 1))),
        put(1, np.zeros(4)),  # as many elements, another shape
        put(1, [[0.0, 0.0], [0.0, 0.0]]),
        put(1, None),
    ],
)
def test_damaged_tensors_are_refused_and_named(name: str, damage: Callable[[Any], None]) -> None:
    saved = copy.deepcopy(state())
    damage(saved[name])
    assert f"{name}" in complaint(saved)


@pytest.mark.parametrize("name", ["anchor", "momentum"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_tensors_with_what_the_adapter_objects_to_are_refused(name: str, value: float) -> None:
    saved = state()
    saved[name][1][1, 0] = value
    assert f"{name}[1] is not finite" in complaint(saved)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (inner_of("Adam", SHAPES, {}), "saved with 'Adam' as the inner optimizer"),
        (inner_of("SGD", [(3,)], {}), "it is not of 3 parameters"),
        (
            inner_of("SGD", [(3,), (4,), (4,)], {}),
            "parameter 1 has shape [2, 2], and [4] was saved",
        ),
        (inner_of("SGD", SHAPES, {"state": {}, "lr": 0.5}), "the inner state['state'] has the"),
        (
            inner_of("SGD", SHAPES, {"state": {0: {"buffer": np.zeros(4)}}, "lr": 0.5}),
            "['state'][0]['buffer'] is ndarray float64[3] and ndarray float64[4] was saved",
        ),
        (
            inner_of("SGD", SHAPES, {"state": {0: {"buffer": np.zeros(3)}}, "lr": 1}),
            "the inner state['lr'] is float and int was saved",
        ),
    ],
)
def test_an_inner_state_of_another_form_than_the_saved_is_refused(other: Any, words: str) -> None:
    assert words in complaint(state(inner=other))


@pytest.mark.parametrize("frozen", [[0], [0, 1, 2], [2, 2], [3], [-1], [True], [2.0], (2,)])
def test_another_list_of_frozen_parameters_is_refused(frozen: Any) -> None:
    complaint(state(frozen=frozen))


def test_frozen_parameters_beside_others_without_an_anchor_are_refused() -> None:
    rates = [[MeanLearningRate()] * 2]
    saved = pack_state(CONFIG, Schedule(CONFIG), rates, {}, {}, INNER, FROZEN)
    assert "no anchor of the others" in complaint(saved)


def test_a_momentum_without_an_anchor_is_refused() -> None:
    assert "no anchor" in complaint(state(anchor={}))


def test_an_anchor_without_its_momentum_is_refused() -> None:
    assert "momentum is missing" in complaint(state(momentum={}))


def test_a_momentum_where_there_is_none_to_keep_is_refused() -> None:
    local = SlowMoConfig(sync_period=4, slow_momentum=0)
    assert "β = 0" in complaint(state(local) | {"momentum": tensors()}, local)


def test_steps_without_an_anchor_are_refused() -> None:
    assert "no anchor" in complaint(state(anchor={}, momentum={}))


def test_a_good_state_is_not_changed_by_the_check() -> None:
    saved = state()
    before = copy.deepcopy(saved)
    check(saved)
    assert str(saved) == str(before)
