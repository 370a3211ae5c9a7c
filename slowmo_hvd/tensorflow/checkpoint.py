"""The slow state in a Keras file: an array for each name, because Keras stores nothing else.

It uses the same schema and the same check as PyTorch, `slowmo_hvd.core.state`. What is not an array
there is JSON in an array of bytes here.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from slowmo_hvd.core.form import array_form
from slowmo_hvd.core.schedule import in_flight
from slowmo_hvd.core.state import (
    OF_FRAGMENTS,
    STATE_VERSION,
    check_state,
    check_version,
    entries_since,
    migrated_config,
    pack_inner,
    periods_of,
    refusal,
)
from slowmo_hvd.tensorflow.leaves import leaves
from slowmo_hvd.tensorflow.training import Training

_Array = npt.NDArray[Any]


def save(training: Training, inner: keras.optimizers.Optimizer, store: Any) -> None:
    """Store everything that is to be saved of a built optimizer in a store of Keras.

    Raises:
        RuntimeError: a sync failed partway, so the state is not that of any step.
    """
    for name, value in training.to_save():
        store[name] = np.array(value.numpy())
    store["version"] = np.array(STATE_VERSION, np.int64)
    store["config"] = _to_bytes(training.config.arithmetic())
    store["inner"] = _to_bytes(_of_inner(training, inner))


class _Large:
    """An array in the store, read when it is needed, so that not all are in memory at once."""

    def __init__(self, store: Any, name: str) -> None:
        self._store, self._name = store, name
        stored = _readable(lambda: store[name])
        self.shape, self.dtype = tuple(stored.shape), stored.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> _Array:
        array: _Array = _readable(lambda: np.asarray(self._store[self._name], dtype))
        return array


def _readable(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # of any type: the file's reader found damage
        raise refusal(f"it cannot be read ({type(error).__name__}: {error})") from error


def _read(store: Any, name: str) -> Any:
    large = name.startswith(("anchor.", "momentum.", "launched."))
    if large and hasattr(store[name], "dtype"):
        return _Large(store, name)
    return np.asarray(store[name])


def load(training: Training, inner: keras.optimizers.Optimizer, store: Any) -> None:
    """Take over what `save` stored.

    Raises:
        ValueError: it does not fit or is damaged; nothing has changed.
    """
    arrays = _readable(lambda: {name: _read(store, name) for name in store.keys()})  # noqa: SIM118
    version = arrays.get("version", np.array("none"))
    is_number = version.dtype == np.int64 and not version.shape
    check_version(int(version) if is_number else version.tolist())  # others have other entries
    newer = [name for name in arrays if name in entries_since(int(version))]
    if newer:
        raise refusal(f"it has the entry {newer[0]}, which version {int(version)} does not have")
    arrays = _migrated(arrays, int(version))
    named = training.forms(_in_flight(arrays.get("landing"), training.config.overlap_steps))
    if set(arrays) != {*named, "version", "config", "inner"}:
        strange = sorted(set(arrays) ^ {*named, "version", "config", "inner"})
        raise refusal(f"its entries are not those of this optimizer: they differ in {strange}")
    for name, form in named.items():
        _check_like(name, arrays[name], form)
    schema = _schema(arrays)
    leaf = type(leaves(inner)[0]).__name__
    schema["config"] = migrated_config(schema["config"], int(version), leaf)
    shapes = [slot.shape for slot in training.slots]
    groups = int(named["lr_total"].shape[1])
    check_state(schema, training.config, groups, shapes, _of_inner(training, inner), _fault)
    for name, array in arrays.items():
        if name in named and named[name].dtype == tf.int64 and (np.asarray(array) < 0).any():
            raise refusal(f"{name} is {array.tolist()}, not of ints >= 0")
    training.load(arrays)
    _insist(inner)


def _migrated(arrays: dict[str, _Array], version: int) -> dict[str, _Array]:
    """Convert the entries of an earlier version to those of this one."""
    if version < 3:  # had only one fragment
        of_fragments = ("window", "position", "lr_total", "lr_steps")
        lists = {name: arrays[name][np.newaxis] for name in of_fragments if name in arrays}
        arrays = {**arrays, **lists, "landing": np.zeros(1, np.int64)}
    if version < 4 and "config" in arrays and "window" in arrays:
        fragments = arrays["window"].size
        since = periods_of(_from_bytes("config", arrays["config"]), fragments)
        period = since["period"][0] if isinstance(since["period"][0], int) else 0
        arrays = {
            **arrays,
            "period": np.full(fragments, period, np.int64),
            "gamma": np.array(since["gamma"]),
            "samples": np.zeros(fragments, np.int64),
        }
    return arrays


def _in_flight(landings: _Array | None, overlap_steps: int) -> list[int]:
    """The fragments whose averages had not landed; empty if there can be none, which is refused."""
    if landings is None or landings.ndim != 1 or not overlap_steps:
        return []
    return in_flight(landings.tolist())


def _schema(arrays: dict[str, _Array]) -> dict[str, Any]:
    """The arrays in the form in which `slowmo_hvd.core.state` describes the slow state."""
    totals = arrays["lr_total"].tolist()
    by_kind: dict[str, dict[int, _Array]] = {"anchor": {}, "momentum": {}, "launched": {}}
    for name, array in arrays.items():
        kind, _, index = name.partition(".")
        if kind in by_kind:
            by_kind[kind][int(index)] = array
    return {
        "version": STATE_VERSION,
        "frozen": [],
        "config": _from_bytes("config", arrays["config"]),
        "step": int(arrays["step"]),
        **{name: arrays[name].tolist() for name in (*OF_FRAGMENTS, "gamma", "samples")},
        "lr_total": totals,
        "lr_steps": [
            [steps] * len(of_one)
            for steps, of_one in zip(arrays["lr_steps"].tolist(), totals, strict=True)
        ],
        **by_kind,
        "inner": _from_bytes("inner", arrays["inner"]),
    }


def _check_like(name: str, array: _Array, form: tf.TensorSpec) -> None:
    if array.shape != tuple(form.shape) or array.dtype != form.dtype.as_numpy_dtype:
        raise refusal(
            f"{name} is {array.dtype}{list(array.shape)} and this optimizer has "
            f"{form.dtype.name}{list(form.shape)}"
        )


def _fault(name: str, position: int, array: _Array) -> str | None:
    return None if np.isfinite(np.asarray(array)).all() else "is not finite"


def _of_inner(training: Training, inner: keras.optimizers.Optimizer) -> dict[str, Any]:
    shapes = [slot.shape for slot in training.slots]
    return pack_inner(type(inner).__name__, shapes, list(inner.variables), array_form)


def _insist(inner: keras.optimizers.Optimizer) -> None:
    """Make the next loading of the inner optimizers, which Keras does by itself, raise an error.

    If the file has another number of variables, Keras only warns and leaves them as they are.
    """
    optimizers = {id(inner): inner} | {id(leaf): leaf for leaf in leaves(inner)}
    for optimizer in optimizers.values():
        if type(optimizer).load_own_variables is keras.optimizers.Optimizer.load_own_variables:
            vars(optimizer)["load_own_variables"] = partial(_load_all, optimizer)


def _load_all(optimizer: keras.optimizers.Optimizer, store: Any) -> None:
    del vars(optimizer)["load_own_variables"]
    saved, ours = len(store.keys()), len(optimizer.variables)
    if saved != ours:
        raise refusal(f"the inner optimizer has {ours} variables and the file has {saved} of them")
    optimizer.load_own_variables(store)


def _to_bytes(value: Any) -> _Array:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _from_bytes(name: str, array: _Array) -> Any:
    try:
        if array.dtype != np.uint8:
            raise ValueError(f"it is {array.dtype}")
        return json.loads(array.tobytes())
    except (ValueError, RecursionError) as error:
        raise refusal(f"{name} is no JSON ({error})") from error
