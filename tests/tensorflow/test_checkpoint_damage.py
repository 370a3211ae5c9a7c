"""Many damaged stores of Keras: each loads wholly, or is a ValueError and changes nothing."""

import copy
import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from damage import SEEDS, Count, damaged, many, refused
from hypothesis import given
from keras_models import mlp, same, train, weights

import slowmo_hvd.tensorflow as hvd

pytestmark = pytest.mark.ranks(1)

INNER: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "SGD": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "Adam": lambda: keras.optimizers.Adam(0.02),
}
TENSOR_CHANGES = [
    lambda array, _: array.T,
    lambda array, _: array.reshape(-1),
    lambda array, _: array[:-1],
    lambda array, _: array.astype("float16"),
    lambda array, _: array.astype("float64"),
    lambda array, _: array.astype("int32"),
    lambda array, _: array * np.float32(np.nan),
    lambda array, number: array + array.dtype.type(number % 100),
    lambda array, _: -array,
    lambda array, _: np.zeros(5),
    lambda array, number: np.random.default_rng(number).permutation(array),
]


class Subject:
    """An optimizer inside its second window, and what it stored a step before."""

    def __init__(self, name: str) -> None:
        self.model = mlp()
        self.optimizer = hvd.DistributedOptimizer(INNER[name](), sync_period=3)
        train(self.model, self.optimizer, range(4), graph=False)
        self.saved: dict[str, Any] = {}
        self.optimizer.save_own_variables(self.saved)
        train(self.model, self.optimizer, [4], graph=False)
        self.now = weights(self.optimizer.variables)
        self.weights = weights(self.model)


subject_for = functools.cache(Subject)
COUNTS = {name: Count() for name in INNER}


def load(name: str, store: dict[str, Any]) -> bool:
    """Load it wholly or not at all; return whether it was loaded."""
    subject = subject_for(name)
    optimizer = subject.optimizer
    if refused(lambda: optimizer.load_own_variables(copy.deepcopy(store))):
        assert same(weights(optimizer.variables), subject.now)
        return False
    again: dict[str, Any] = {}
    optimizer.save_own_variables(again)
    assert all(same([again[key]], [np.asarray(store[key])]) for key in set(store) - {"version"})
    if COUNTS[name].loaded < 5:
        train(subject.model, optimizer, range(2), graph=False)  # over a sync
    optimizer.set_weights(subject.now)
    subject.model.set_weights(subject.weights)
    return True


@many(1000)
@given(SEEDS)
def load_damaged(seeds: list[int]) -> None:
    for seed in seeds:
        name = ("SGD", "Adam")[seed % 2]
        store = damaged(subject_for(name).saved, seed, TENSOR_CHANGES)
        COUNTS[name].add(load(name, {str(key): value for key, value in store.items()}))


def test_every_damaged_store_loads_wholly_or_changes_nothing() -> None:
    load_damaged()
    for name, count in COUNTS.items():
        assert count.refused > count.loaded > 0, (name, count)
    assert sum(count.all for count in COUNTS.values()) >= 1000


def test_a_later_version_is_refused_before_its_entries_are_read() -> None:
    subject = subject_for("SGD")
    store = {**subject.saved, "version": np.array(5), "more": np.zeros(3)}
    with pytest.raises(ValueError, match="version is 5 and this release reads 1, 2, 3, 4; upgrade"):
        subject.optimizer.load_own_variables(store)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_store_of_an_earlier_version_loads(version: int) -> None:
    """τ was a number; before that, it was of one fragment, with numbers where there is a list."""
    subject = subject_for("SGD")
    since = ("period", "gamma", "samples", *(["landing"] if version < 3 else []))
    old = {name: value for name, value in subject.saved.items() if name not in since}
    settings = json.loads(old["config"].tobytes())
    if version < 3:
        for name in ("window", "position", "lr_total", "lr_steps"):
            (old[name],) = subject.saved[name]
        settings = {k: v for k, v in settings.items() if k not in ("overlap_steps", "fragments")}
    config = np.frombuffer(json.dumps(settings).encode(), np.uint8)
    subject.optimizer.load_own_variables({**old, "version": np.array(version), "config": config})
    again: dict[str, Any] = {}
    subject.optimizer.save_own_variables(again)
    kept = [name for name in subject.saved if name != "gamma"]
    assert same([again[name] for name in kept], [subject.saved[name] for name in kept])
    assert again["gamma"].tolist() == [0.0]  # which was not needed
    subject.optimizer.set_weights(subject.now)
    subject.model.set_weights(subject.weights)


def test_a_store_of_version_3_keeps_its_overlap_and_its_fragments() -> None:
    model = mlp()
    inner = INNER["SGD"]()
    optimizer = hvd.DistributedOptimizer(inner, sync_period=4, overlap_steps=1, fragments=2)
    train(model, optimizer, range(5))
    saved: dict[str, Any] = {}
    optimizer.save_own_variables(saved)
    old = {name: saved[name] for name in saved if name not in ("period", "gamma", "samples")}
    train(model, optimizer, range(2))
    optimizer.load_own_variables({**old, "version": np.array(3)})
    again: dict[str, Any] = {}
    optimizer.save_own_variables(again)
    assert same([again[name] for name in old], list(old.values()))


def test_a_store_that_says_an_earlier_version_than_it_is_of_is_refused() -> None:
    subject = subject_for("SGD")
    for version, name in ((3, "period"), (2, "landing")):
        with pytest.raises(
            ValueError, match=f"the entry {name}, which version {version} does not have"
        ):
            subject.optimizer.load_own_variables({**subject.saved, "version": np.array(version)})


def test_weights_of_another_configuration_are_refused(tmp_path: Path) -> None:
    saved, other = (mlp() for _ in range(2))
    for model, period in ((saved, 3), (other, 4)):
        optimizer = hvd.DistributedOptimizer(INNER["SGD"](), sync_period=period)
        model.compile(optimizer=optimizer, loss="mse")
        optimizer.build(model.trainable_variables)
    saved.save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(ValueError, match="saved with sync_period=3 and this optimizer has"):
        other.load_weights(tmp_path / "a.weights.h5")


@pytest.mark.parametrize("where", ["optimizer/vars/anchor.0", "optimizer/inner_optimizer/vars/1"])
def test_a_file_that_lost_an_entry_is_an_error_of_keras_load_weights(
    where: str, tmp_path: Path
) -> None:
    model = mlp()
    model.compile(optimizer=hvd.DistributedOptimizer(INNER["Adam"]()), loss="mse")
    model.optimizer.build(model.trainable_variables)
    path = tmp_path / "a.weights.h5"
    model.save_weights(path)
    with h5py.File(path, "r+") as file:
        del file[where]
    with pytest.raises(ValueError, match="cannot load this SlowMo state: "):
        model.load_weights(path)


def test_a_model_file_cut_off_or_with_a_bit_flipped_loads_wholly_or_is_an_error(
    tmp_path: Path,
) -> None:
    model = mlp()
    model.compile(optimizer=hvd.DistributedOptimizer(INNER["SGD"]()), loss="mse")
    train(model, model.optimizer, range(2), graph=False)
    model.save(tmp_path / "whole.keras")
    resumed = keras.saving.load_model(tmp_path / "whole.keras", safe_mode=True)
    assert same(weights(resumed.optimizer.variables), weights(model.optimizer.variables))
    whole = (tmp_path / "whole.keras").read_bytes()
    random, count = Random(0), Count()
    for index in range(60):
        data = bytearray(whole)
        where = random.randrange(len(data))
        if index % 3:
            data[where] ^= 1 << random.randrange(8)
        else:
            del data[where:]
        path = tmp_path / f"{index}.keras"
        path.write_bytes(data)
        try:
            loaded = keras.saving.load_model(path, safe_mode=True)
        except Exception:  # of many kinds: zipfile's, h5py's, Keras' and ours
            count.add(loaded=False)
            continue
        count.add(loaded=True)
        assert same(weights(loaded.optimizer.variables), weights(model.optimizer.variables))
    assert count.refused > 0, count  # the archive has checksums, so nearly all are found


def test_an_optimizer_that_is_not_built_says_that_it_leaves_the_saved_one_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved, fresh = (mlp() for _ in range(2))
    for model in (saved, fresh):
        model.compile(optimizer=hvd.DistributedOptimizer(INNER["SGD"]()), loss="mse")
    saved.optimizer.build(saved.trainable_variables)
    saved.save_weights(tmp_path / "a.weights.h5")
    with (
        caplog.at_level(logging.INFO, logger="slowmo_hvd"),
        pytest.warns(UserWarning, match="this one is not built|Skipping variable loading") as said,
    ):
        fresh.load_weights(tmp_path / "a.weights.h5")
    assert any("the saved optimizer is left out" in str(warning.message) for warning in said)
    assert not [record for record in caplog.records if record.name == "slowmo_hvd"]
