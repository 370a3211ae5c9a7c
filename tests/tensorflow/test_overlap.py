"""Keras' side of an average that is under way: what does not go with it, and what it is to."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_models import equal_on_all_ranks, fit, mlp, weights
from ranks import by_rank

import slowmo_hvd.tensorflow as hvd


def number(value: float, **options: Any) -> keras.Variable:
    return keras.Variable([value], **options)


def sgd(**slowmo: Any) -> hvd.DistributedOptimizer:
    inner = keras.optimizers.SGD(1.0)
    return hvd.DistributedOptimizer(inner, **{"slow_momentum": 0.0, **slowmo})


def step(optimizer: hvd.DistributedOptimizer, *variables: Any) -> None:
    """One with gradient 1 on rank 0 and 3 on rank 1."""
    gradient = tf.constant([by_rank(1.0, 3.0)])
    gradients = [tf.cast(gradient, variable.dtype) for variable in variables]
    optimizer.apply(gradients, variables)


def read(*variables: Any) -> list[float]:
    return [float(variable.numpy()[0]) for variable in variables]


# ---- what is refused -----------------------------------------------------------------------


@pytest.mark.ranks(1)
@pytest.mark.parametrize(
    ("inner", "settings", "why"),
    [
        (
            lambda: keras.optimizers.Ftrl(0.1),
            {"overlap_steps": 1},
            "overlap_steps=1 cannot be used with Ftrl: it keeps copies of the weights and steps",
        ),
        (
            lambda: keras.optimizers.Adam(0.1),
            {"fragments": 2, "buffers": "reset"},
            "cannot be used with fragments=2 and Adam: it counts its steps once for all weights",
        ),
        (
            lambda: keras.optimizers.SGD(0.1),
            {"fragments": 3},
            "fragments=3 are more than the 2 variables that they are to be dealt",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(
    inner: Callable[[], keras.optimizers.Optimizer], settings: dict[str, Any], why: str
) -> None:
    optimizer = hvd.DistributedOptimizer(inner(), **settings)
    with pytest.raises(ValueError, match=re.escape(why)):
        optimizer.build([number(0.0), number(0.0)])


@pytest.mark.ranks(2)
def test_a_profile_names_fragment_and_bucket(tmp_path: Path) -> None:
    first, second = number(0.0), number(0.0)
    optimizer = sgd(sync_period=2, overlap_steps=1, fragments=2)
    step(optimizer, first, second)
    with tf.profiler.experimental.Profile(str(tmp_path)):
        step(optimizer, first, second)
        step(optimizer, first, second)
    (trace,) = (path.read_bytes() for path in tmp_path.rglob("*.xplane.pb"))
    for name in ("launch.fragment1", "pack.fragment1.bucket0", "landing.fragment0"):
        assert f"slowmo.{name}".encode() in trace


# ---- what changes on the way ---------------------------------------------------------------


@pytest.mark.ranks(2)
def test_what_is_frozen_while_it_is_under_way_lands_first() -> None:
    free, still = number(0.0), number(0.0)
    optimizer = sgd(sync_period=2, overlap_steps=1)
    for _ in range(2):
        step(optimizer, free, still)
    still.trainable = False
    step(optimizer, free)  # -4 lands on both where this step begins
    assert read(free, still) == [-4.0 - by_rank(1.0, 3.0), -4.0]
    step(optimizer, free)
    optimizer.flush()
    assert read(free, still) == [-8.0, -4.0]


@pytest.mark.ranks(2)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_any_dtype_lands_with_its_local_steps(dtype: str) -> None:
    weight = number(0.0, dtype=dtype)
    optimizer = sgd(sync_period=2, overlap_steps=1)
    for _ in range(3):
        step(optimizer, weight)
    assert read(weight) == [-4.0 - by_rank(1.0, 3.0)]


@pytest.mark.ranks(2)
def test_a_constraint_binds_what_lands_and_the_anchor_with_it() -> None:
    class AtLeast(keras.constraints.Constraint):  # type: ignore[misc]
        def __call__(self, value: Any) -> Any:
            return tf.maximum(value, -3.0)

    weight = number(0.0)
    weight.constraint = AtLeast()
    optimizer = sgd(sync_period=2, overlap_steps=1)
    for _ in range(2):
        step(optimizer, weight)  # -2 and, bound, -3: -2.5 in the mean
    step(optimizer, weight)  # -3 on rank 0, still -3 on rank 1
    assert read(weight) == [
        by_rank(-3.0, -2.5)
    ]  # -2.5 - 1, bound; and no step was left of rank 1's
    optimizer.flush()
    assert read(weight) == [-2.75]


@pytest.mark.ranks(2)
def test_a_model_saved_by_fit_while_something_is_under_way_goes_on_as_one_that_was_not(
    tmp_path: Path,
) -> None:
    model = mlp()
    model.compile(sgd(sync_period=4, overlap_steps=3, slow_momentum=0.5), loss="mse")
    path = tmp_path / f"{hvd.rank()}.keras"

    class Save(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 4:  # the average launched after the fourth step is under way
                self.model.save(path)

    fit(model, range(10), callbacks=[Save()])
    resumed = keras.saving.load_model(path)
    assert list(resumed.optimizer._training.counters.landing.numpy()) == [7]
    fit(resumed, range(5, 10))
    assert equal_on_all_ranks(resumed)
    for ours, theirs in zip(weights(resumed), weights(model), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.ranks(2)
def test_fit_ends_with_one_model_and_says_what_was_hidden() -> None:
    model, told = mlp(), []
    optimizer = sgd(sync_period=3, overlap_steps=2, fragments=2)
    optimizer.register_sync_hook(told.append)
    model.compile(optimizer, loss="mse")
    fit(model, range(8))
    assert equal_on_all_ranks(model)
    assert [(record.step, record.fragments) for record in told] == [
        (1, (0,)),
        (3, (1,)),
        (4, (0,)),
        (6, (1,)),
        (7, (0,)),
        (8, (0, 1)),
    ]
    assert optimizer.sync_stats.hidden > 0
