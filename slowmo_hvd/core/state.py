"""The slow state as it is saved: builtins and tensors only, checked wholly before it is used.

    {"version": 1,
     "config":   {"sync_period": 12, ...},            SlowMoConfig.arithmetic()
     "step":     int, "window": int, "position": int, the Schedule's counters
     "lr_total": [float], "lr_steps": [int],          one MeanLearningRate per parameter group
     "anchor":   {0: tensor, 1: ...},                 x_{t,0} by the parameter's position, or {}
     "momentum": {0: tensor, 1: ...}}                 u_t likewise, or {} where β = 0

The tensors are the framework's own; of them this module asks for ``shape`` alone.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.schedule import MeanLearningRate, Schedule

STATE_VERSION = 1
_COUNTERS = ("step", "window", "position")
_KEYS = {"version", "config", *_COUNTERS, "lr_total", "lr_steps", "anchor", "momentum"}


def pack_state(
    config: SlowMoConfig,
    schedule: Schedule,
    rates: Sequence[MeanLearningRate],
    anchor: Mapping[int, Any],
    momentum: Mapping[int, Any],
) -> dict[str, Any]:
    """The slow state of one optimizer, as described above."""
    return {
        "version": STATE_VERSION,
        "config": config.arithmetic(),
        **{name: getattr(schedule, name) for name in _COUNTERS},
        "lr_total": [float(rate.total) for rate in rates],
        "lr_steps": [rate.steps for rate in rates],
        "anchor": dict(anchor),
        "momentum": dict(momentum),
    }


def check_state(
    state: Any, config: SlowMoConfig, groups: int, shapes: Sequence[tuple[int, ...]]
) -> None:
    """Raise ValueError, and say what is wrong, unless ``state`` can be loaded as a whole.

    Args:
        state: what `pack_state` made, perhaps long ago and perhaps damaged since.
        config: the configuration of the optimizer that would load it.
        groups: the number of its parameter groups.
        shapes: the shape of each of its parameters, in group order.
    """
    _require(isinstance(state, Mapping), f"it is a {type(state).__name__}, not a dict")
    version = state.get("version")
    _require(
        version == STATE_VERSION,
        f"its version is {version!r} and this release reads {STATE_VERSION}"
        + ("; upgrade slowmo_hvd" if isinstance(version, int) and version > STATE_VERSION else ""),
    )
    _require(set(state) == _KEYS, f"its keys are {sorted(map(str, state))}, not {sorted(_KEYS)}")
    _check_config(state["config"], config)
    for name in _COUNTERS:
        _require(_is_count(state[name]), f"{name} is {state[name]!r}, not an int >= 0")
    for name in ("position", "window"):
        _require(
            state[name] <= state["step"], f"{name} is {state[name]} after {state['step']} steps"
        )
    _check_rates(state["lr_total"], state["lr_steps"], groups, state["step"])
    _check_tensors("anchor", state["anchor"], shapes)
    _check_tensors("momentum", state["momentum"], shapes)
    _require(
        not state["momentum"] or bool(state["anchor"]),
        "it has a momentum but no anchor to apply it to",
    )
    _require(
        bool(state["momentum"]) == (bool(state["anchor"]) and config.slow_momentum > 0),
        "its momentum is missing" if not state["momentum"] else "it has a momentum, though β = 0",
    )
    _require(
        bool(state["anchor"]) or state["step"] == 0,
        f"it has taken {state['step']} steps but has no anchor",
    )


def unpack_counters(state: Mapping[str, Any], schedule: Schedule) -> list[MeanLearningRate]:
    """Set the schedule's counters from a checked state; return the groups' learning rates."""
    for name in _COUNTERS:
        setattr(schedule, name, state[name])
    return [
        MeanLearningRate(total, steps)
        for total, steps in zip(state["lr_total"], state["lr_steps"], strict=True)
    ]


def _require(condition: bool, why: str) -> None:
    if not condition:
        raise ValueError(f"cannot load this SlowMo state: {why}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_config(saved: Any, config: SlowMoConfig) -> None:
    ours = config.arithmetic()
    _require(isinstance(saved, Mapping), f"config is a {type(saved).__name__}, not a dict")
    _require(set(saved) == set(ours), f"config has the keys {sorted(map(str, saved))}")
    for name, value in ours.items():
        _require(
            type(saved[name]) is type(value) and saved[name] == value,
            f"it was saved with {name}={saved[name]!r} and this optimizer has {name}={value!r}; "
            f"build the optimizer with {name}={saved[name]!r}, or load the checkpoint without "
            'its "slowmo" entry to begin with a fresh slow state',
        )


def _check_rates(totals: Any, steps: Any, groups: int, taken: int) -> None:
    for name, values in (("lr_total", totals), ("lr_steps", steps)):
        _require(isinstance(values, list), f"{name} is a {type(values).__name__}, not a list")
        _require(
            len(values) == groups,
            f"{name} has {len(values)} entries and the optimizer has {groups} parameter groups",
        )
    for total in totals:
        _require(isinstance(total, float) and math.isfinite(total), f"lr_total holds {total!r}")
    for total, count in zip(totals, steps, strict=True):
        _require(_is_count(count), f"lr_steps holds {count!r}")
        _require(count <= taken, f"lr_steps holds {count} after {taken} steps")
        _require(count > 0 or total == 0, f"lr_steps holds 0 beside a total of {total}")


def _check_tensors(name: str, tensors: Any, shapes: Sequence[tuple[int, ...]]) -> None:
    _require(isinstance(tensors, Mapping), f"{name} is a {type(tensors).__name__}, not a dict")
    if not tensors:
        return
    _require(
        set(tensors) == set(range(len(shapes))),
        f"{name} has {len(tensors)} tensors and the optimizer has {len(shapes)} parameters",
    )
    for index, shape in enumerate(shapes):
        found = getattr(tensors[index], "shape", None)
        _require(
            found is not None and tuple(found) == tuple(shape),
            f"{name}[{index}] has shape {None if found is None else tuple(found)} and the "
            f"parameter has {tuple(shape)}",
        )
