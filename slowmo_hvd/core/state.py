"""The slow state as it is saved: builtins and tensors only, checked completely before use.

    {"version": 4,
     "config":   {"sync_period": 12, ...},            SlowMoConfig.arithmetic()
     "step":     int,                                 the Schedule's counters, of the steps and
     "window":   [int], "position": [int],                of each fragment
     "landing":  [int],
     "period":   [int], "gamma": [float],             τ of each window, and the γ that a `qsr` uses
     "lr_total": [[float]], "lr_steps": [[int]],      one MeanLearningRate per parameter group, of
                                                      each fragment
     "samples":  [int],                               n, counted by `contribute`, of each fragment
     "frozen":   [int],                               positions of parameters not trained, which
                                                      have no entry in the next two; [] before a
                                                      step
     "anchor":   {0: tensor, 1: ...},                 x_{t,0} by the parameter's position, or {}
     "momentum": {0: tensor, 1: ...},                 u_t likewise, or {} where β = 0
     "launched": {0: tensor, 1: ...},                 x^i at the launch of what has not landed yet
     "inner":    {"optimizer": "Adam",                the inner optimizer's class
                  "params":    [[3, 4], ...],         the parameters' shapes
                  "layout":    "..."}}                the form of its state, `form_text`

Version 3 had no "period" and "gamma", because τ was a number, and no "samples". Version 2 had only
one fragment, with numbers in place of lists of one, and no "landing" and "launched". Version 1 also
had no "frozen", and had an anchor for each parameter. `check_state` accepts all versions, and
`migrated` converts them to this one.

The tensors are the framework's own. This module only uses their ``shape``; the adapter tells it
about their values.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from slowmo_hvd.core.buckets import share_out
from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.form import Describe, form_text, text_difference
from slowmo_hvd.core.schedule import MeanLearningRate, Schedule, in_flight

STATE_VERSION = 4
OF_FRAGMENTS = ("window", "position", "landing", "period")
_KEYS_1 = {
    "version",
    "config",
    "step",
    "window",
    "position",
    "lr_total",
    "lr_steps",
    "anchor",
    "momentum",
    "inner",
}
_KEYS_2 = _KEYS_1 | {"frozen"}
_KEYS_3 = _KEYS_2 | {"landing", "launched"}
_KEYS_4 = _KEYS_3 | {"period", "gamma", "samples"}
_KEYS = {1: _KEYS_1, 2: _KEYS_2, 3: _KEYS_3, STATE_VERSION: _KEYS_4}
_CONFIG_BEFORE_3 = {"overlap_steps": 0, "fragments": 1}  # for states without these settings
# The ranks compare their counters in float64, which holds every whole number below this.
_COUNTS_END = 2**53
# No learning rate is larger, and beyond this α β γ might not fit a float32 on the way to x.
_LARGEST_GAMMA = 2.0**100


def pack_state(
    config: SlowMoConfig,
    schedule: Schedule,
    rates: Sequence[Sequence[MeanLearningRate]],
    anchor: Mapping[int, Any],
    momentum: Mapping[int, Any],
    inner: Mapping[str, Any],
    frozen: Sequence[int] = (),
    launched: Mapping[int, Any] | None = None,
    samples: Sequence[int] | None = None,
) -> dict[str, Any]:
    """The slow state of one optimizer, as described above."""
    return {
        "version": STATE_VERSION,
        "config": config.arithmetic(),
        "step": schedule.step,
        "window": list(schedule.windows),
        "position": list(schedule.positions),
        "landing": list(schedule.landings),
        "period": list(schedule.periods),
        "gamma": list(schedule.gammas),
        "lr_total": [[float(rate.total) for rate in of_fragment] for of_fragment in rates],
        "lr_steps": [[rate.steps for rate in of_fragment] for of_fragment in rates],
        "samples": list(samples or [0] * config.fragments),
        "frozen": list(frozen),
        "anchor": dict(anchor),
        "momentum": dict(momentum),
        "launched": dict(launched or {}),
        "inner": dict(inner),
    }


def migrated(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a state of an earlier version, with all its keys, to this version; no copy."""
    inner = state["inner"]
    optimizer = inner.get("optimizer") if isinstance(inner, Mapping) else None
    version = state["version"]
    state = {**state, "config": migrated_config(state["config"], version, optimizer)}
    if version < 3:
        lists = ("window", "position", "lr_total", "lr_steps")
        state = {
            "frozen": [],
            **state,
            "landing": [0],
            "launched": {},
            **{name: [state[name]] for name in lists},
        }
    if version < 4:
        windows = state["window"]
        fragments = len(windows) if isinstance(windows, list) else 1
        since = periods_of(state["config"], fragments)
        state = {**state, **since, "samples": [0] * fragments}
    return {**state, "version": STATE_VERSION}


def entries_since(version: int) -> set[str]:
    """The entries that today's version has and this version does not have."""
    return _KEYS[STATE_VERSION] - _KEYS[version]


def periods_of(config: Any, fragments: int) -> dict[str, list[Any]]:
    """The entries of version 4 for a state of an earlier version, in which τ was a number.

    Args:
        config: the configuration in that state. If it is not a configuration, later checks find
            that.
        fragments: the number of fragments in that state.
    """
    period = config.get("sync_period") if isinstance(config, Mapping) else None
    return {"period": [period] * fragments, "gamma": [0.0] * fragments}


def migrated_config(config: Any, version: int, optimizer: Any) -> Any:
    """Convert the configuration of a saved optimizer to today's.

    Version 0.1 had another default for ``buffers``, "auto".

    Args:
        config: the configuration. If it is not one, later checks find that.
        version: of the state that it is in.
        optimizer: the name of the inner optimizer's class, on which "auto" depended.
    """
    if not isinstance(config, Mapping):
        return config
    if version < 3:
        config = {**config, **_CONFIG_BEFORE_3}
    if config.get("buffers") == "auto":
        config = {**config, "buffers": "reset" if optimizer in ("SGD", "LBFGS") else "maintain"}
    return config


def pack_inner(
    optimizer: str, shapes: Sequence[tuple[int, ...]], state: Any, describe: Describe
) -> dict[str, Any]:
    """What the slow state says about the inner optimizer.

    Args:
        optimizer: the name of its class.
        shapes: the shape of each of its parameters, in group order.
        state: its own state, as it is saved.
        describe: returns the form of a tensor in it.
    """
    form = form_text(state, describe)
    return {"optimizer": optimizer, "params": list(map(list, shapes)), "layout": form}


def check_state(
    state: Any,
    config: SlowMoConfig,
    groups: int,
    shapes: Sequence[tuple[int, ...]],
    inner: Mapping[str, Any],
    fault: Callable[[str, int, Any], str | None],
) -> None:
    """Raise ValueError, and say what is wrong, unless ``state`` can be loaded as a whole.

    Args:
        state: what `pack_state` made, perhaps long ago and perhaps damaged since.
        config: the configuration of the optimizer that would load it.
        groups: the number of its parameter groups.
        shapes: the shape of each of its parameters, in group order.
        inner: `pack_inner` of that optimizer and of the inner state that came with ``state``.
        fault: called with "anchor", "momentum" or "launched", a parameter's position and the saved
            tensor; returns what is wrong with that tensor, such as "is not finite", or None.
    """
    _require(isinstance(state, Mapping), f"it is a {type(state).__name__}, not a dict")
    check_version(state.get("version"))
    keys = _KEYS[state["version"]]
    _require(set(state) == keys, f"its keys are {sorted(map(str, state))}, not {sorted(keys)}")
    state = migrated(state)
    _check_config(state["config"], config)
    _check_counters(state, config)
    _check_rates(state["lr_total"], state["lr_steps"], config.fragments, groups, state["step"])
    _check_list("samples", state["samples"], config.fragments, "fragments")
    for samples in state["samples"]:
        _require_count("samples", samples)
    _check_inner(state["inner"], inner)
    trained = _trained(state, len(shapes))
    _check_tensors("anchor", state["anchor"], trained, shapes, fault)
    _check_tensors("momentum", state["momentum"], trained, shapes, fault)
    _check_launched(state, trained, shapes, fault)
    _require(
        not state["momentum"] or bool(state["anchor"]),
        "it has a momentum but no anchor to apply it to",
    )
    _require(
        bool(state["momentum"]) == (bool(state["anchor"]) and config.has_momentum),
        "its momentum is missing" if not state["momentum"] else "it has a momentum, though β = 0",
    )
    _require(
        bool(state["anchor"]) or state["step"] == 0 or not trained,
        f"it has taken {state['step']} steps but has no anchor",
    )
    _require(
        bool(state["anchor"]) or len(trained) in (0, len(shapes)),
        "it has frozen parameters but no anchor of the others",
    )


def check_version(version: Any) -> None:
    """Raise ValueError unless a state of this version can be read."""
    newer = isinstance(version, int) and version > STATE_VERSION
    _require(
        type(version) is int and version in _KEYS,
        f"its version is {version!r} and this release reads {', '.join(map(str, _KEYS))}"
        + ("; upgrade slowmo_hvd" if newer else ""),
    )


def unpack_counters(state: Mapping[str, Any], schedule: Schedule) -> list[list[MeanLearningRate]]:
    """Set the schedule's counters from a state of this version that was checked.

    Returns:
        The learning rates of the groups, for each fragment.
    """
    schedule.step = state["step"]
    schedule.windows = list(state["window"])
    schedule.positions = list(state["position"])
    schedule.landings = list(state["landing"])
    schedule.periods = list(state["period"])
    schedule.gammas = list(state["gamma"])
    return [
        [MeanLearningRate(total, steps) for total, steps in zip(*of_fragment, strict=True)]
        for of_fragment in zip(state["lr_total"], state["lr_steps"], strict=True)
    ]


def refusal(why: str) -> ValueError:
    """The error for a state that cannot be loaded."""
    return ValueError(f"cannot load this SlowMo state: {why}")


def _require(condition: bool, why: str) -> None:
    if not condition:
        raise refusal(why)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _COUNTS_END


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


def _check_counters(state: Mapping[str, Any], config: SlowMoConfig) -> None:
    _require_count("step", state["step"])
    step = state["step"]
    for name in (*OF_FRAGMENTS, "gamma"):
        _check_list(name, state[name], config.fragments, "fragments")
    for fragment in range(config.fragments):
        window, position, landing, period = (state[name][fragment] for name in OF_FRAGMENTS)
        of = f" of fragment {fragment}" if config.fragments > 1 else ""
        for name, value in zip(OF_FRAGMENTS, (window, position, landing, period), strict=True):
            _require_count(name + of, value)
        gamma = state["gamma"][fragment]
        _require(
            isinstance(gamma, float) and math.isfinite(gamma) and gamma >= 0,
            f"gamma{of} is {gamma!r}, not a finite float >= 0",
        )
        tau, least = config.sync_period, config.overlap_steps + 1
        _require(
            period == tau if isinstance(tau, int) else period >= least,
            f"period{of} is {period}, which this sync_period cannot have given",
        )
        first = period - (fragment + 1) * period // config.fragments  # where a first window begins
        _require(window <= step, f"window{of} is {window} after {step} steps")
        _require(position <= step + first, f"position{of} is {position} after {step} steps")
        _require(
            landing == 0 or step <= landing <= step + config.overlap_steps,
            f"landing{of} is {landing} after {step} steps",
        )


def _require_count(name: str, value: Any) -> None:
    _require(_is_count(value), f"{name} is {value!r}, not an int >= 0 and < 2**53")


def _check_list(name: str, values: Any, length: int, of: str) -> None:
    _require(isinstance(values, list), f"{name} is a {type(values).__name__}, not a list")
    _require(
        len(values) == length,
        f"{name} has {len(values)} entries and the optimizer has {length} {of}",
    )


def _check_rates(totals: Any, steps: Any, fragments: int, groups: int, taken: int) -> None:
    for name, of_fragments in (("lr_total", totals), ("lr_steps", steps)):
        _check_list(name, of_fragments, fragments, "fragments")
        for values in of_fragments:
            _check_list(name, values, groups, "parameter groups")
    for total, count in zip(_flat(totals), _flat(steps), strict=True):
        _require(isinstance(total, float) and math.isfinite(total), f"lr_total holds {total!r}")
        _require(_is_count(count), f"lr_steps holds {count!r}")
        _require(count <= taken, f"lr_steps holds {count} after {taken} steps")
        _require(count > 0 or total == 0, f"lr_steps holds 0 beside a total of {total}")
        _require(
            abs(total) <= _LARGEST_GAMMA * count,
            f"lr_total holds {total}, more than the learning rates of {count} steps add up to",
        )


def _flat(of_fragments: Iterable[Iterable[Any]]) -> list[Any]:
    return [value for values in of_fragments for value in values]


def _check_inner(saved: Any, inner: Mapping[str, Any]) -> None:
    _require(isinstance(saved, dict), f"inner is a {type(saved).__name__}, not a dict")
    _require(set(saved) == set(inner), f"inner has the keys {sorted(map(str, saved))}")
    _require(
        saved["optimizer"] == inner["optimizer"],
        f"it was saved with {saved['optimizer']!r} as the inner optimizer and this one is "
        f"{inner['optimizer']!r}; build the optimizer around that, or load the checkpoint without "
        'its "slowmo" entry to begin with a fresh slow state',
    )
    shapes = saved["params"]
    _require(
        isinstance(shapes, list) and len(shapes) == len(inner["params"]),
        f"it is not of {len(inner['params'])} parameters, which this optimizer has",
    )
    for index, (theirs, ours) in enumerate(zip(shapes, inner["params"], strict=True)):
        _require(theirs == ours, f"parameter {index} has shape {ours}, and {theirs} was saved")
    wrong = text_difference(saved["layout"], inner["layout"])
    _require(wrong is None, f"{wrong}; take another checkpoint, this one is damaged")


def _trained(state: Mapping[str, Any], params: int) -> list[int]:
    """The positions of the parameters that have an anchor, if there is one."""
    frozen = state.get("frozen", [])
    _require(isinstance(frozen, list), f"frozen is a {type(frozen).__name__}, not a list")
    _require(
        all(type(position) is int and 0 <= position < params for position in frozen)
        and frozen == sorted(set(frozen)),
        f"frozen is {frozen!r}, not positions of {params} parameters in order",
    )
    return sorted(set(range(params)) - set(frozen))


def _check_launched(
    state: Mapping[str, Any],
    trained: Sequence[int],
    shapes: Sequence[tuple[int, ...]],
    fault: Callable[[str, int, Any], str | None],
) -> None:
    parts = share_out([math.prod(shape) for shape in shapes], len(state["landing"]))
    under_way = {
        position for fragment in in_flight(state["landing"]) for position in parts[fragment]
    }
    expected, launched = under_way & set(trained), state["launched"]
    _require(
        bool(launched) or not expected or not state["anchor"],
        "its launched is missing, though averages have not landed",
    )
    _check_tensors("launched", launched, expected, shapes, fault)


def _check_tensors(
    name: str,
    tensors: Any,
    expected: Collection[int],
    shapes: Sequence[tuple[int, ...]],
    fault: Callable[[str, int, Any], str | None],
) -> None:
    _require(isinstance(tensors, Mapping), f"{name} is a {type(tensors).__name__}, not a dict")
    if not tensors:
        return
    _require(
        set(tensors) == set(expected),
        f"{name} has {len(tensors)} tensors, not those of {len(expected)} of the optimizer's "
        f"{len(shapes)} parameters",
    )
    for index in sorted(expected):
        shape = shapes[index]
        found = getattr(tensors[index], "shape", None)
        _require(
            found is not None and tuple(found) == tuple(shape),
            f"{name}[{index}] has shape {None if found is None else tuple(found)} and the "
            f"parameter has {tuple(shape)}",
        )
        wrong = fault(name, index, tensors[index])
        _require(wrong is None, f"{name}[{index}] {wrong}")
