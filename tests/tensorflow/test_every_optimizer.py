"""Any optimizer works inside: each class that Keras exports, and the user's own.

The model has a layer in float32 and one in bfloat16, so that each case is one of both.
"""

import functools
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_models import (
    Array,
    batch,
    model_of_two_dtypes,
    number,
    same,
    step_function,
    step_with,
    weights,
)
from keras_optimizers import INNER, OTHERS, STRATEGIES, classes_in_keras
from ranks import everyone

import slowmo_hvd.tensorflow as hvd

STEPS = 5  # two windows of two steps, and one step more
RANKS = pytest.mark.ranks(1, 2)
# Every optimizer trains on one rank in the first of these tests.
WITH_TWO = pytest.mark.pairwise("ranks", "name")


@dataclass
class Run:
    """What was there before the first step and after each."""

    weights: list[list[Array]] = field(default_factory=list)
    buffers: list[list[Array]] = field(default_factory=list)
    syncs: list[int] = field(default_factory=list)


def float_buffers(inner: keras.optimizers.Optimizer) -> list[Any]:
    """The moments and the like: no counts, and not the learning rate or the scale of the loss."""
    others = ("learning_rate", "dynamic_scale")
    return [v for v in inner.variables if "int" not in v.dtype and v.name not in others]


def of_dtype(dtype: str, arrays: list[Array]) -> list[Array]:
    chosen = [array for array in arrays if array.dtype.name == dtype]
    assert chosen
    return chosen


@functools.cache
def run(name: str, strategy: str) -> Run:
    model, inner = model_of_two_dtypes(), INNER[name]()
    optimizer = hvd.DistributedOptimizer(inner, sync_period=2, buffers=strategy)
    step = step_function(model, optimizer)
    seen = Run()
    for count in range(STEPS + 1):
        seen.weights.append(weights(model))
        seen.buffers.append(weights(float_buffers(inner)))
        seen.syncs.append(optimizer.sync_stats.syncs)
        if count < STEPS:
            step(*map(tf.constant, batch(count)))
    return seen


def test_every_class_that_keras_exports_is_in_the_matrix() -> None:
    assert classes_in_keras() - OTHERS <= set(INNER)


@RANKS
@pytest.mark.pairwise
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", INNER)
def test_workers_part_inside_each_window_and_meet_at_its_end(name: str, strategy: str) -> None:
    seen = run(name, strategy)
    first, *others = everyone(seen.weights)
    for step in range(STEPS + 1):
        for dtype in ("float32", "bfloat16"):
            ours, *theirs = (of_dtype(dtype, history[step]) for history in (first, *others))
            assert all(same(ours, other) == (step % 2 == 0) for other in theirs), f"step {step}"
            assert step == 0 or not same(ours, of_dtype(dtype, first[step - 1]))
    assert seen.syncs == [0, 0, 1, 1, 2, 2]
    assert all(np.all(np.abs(weight.astype(float)) < 10) for weight in first[-1])  # and no NaN


# Not Ftrl: newly made it forgets the weights that it finds.
@RANKS
@WITH_TWO
@pytest.mark.parametrize("name", [name for name in INNER if name != "Ftrl"])
def test_reset_begins_a_window_as_an_optimizer_newly_made_does(name: str) -> None:
    seen, model = run(name, "reset"), model_of_two_dtypes()
    model.set_weights(seen.weights[4])
    step_function(model, INNER[name]())(*map(tf.constant, batch(4)))
    assert same(weights(model), seen.weights[5])


@RANKS
@WITH_TWO
@pytest.mark.parametrize("name", INNER)
def test_maintain_does_not(name: str) -> None:
    seen, as_new = run(name, "maintain"), run(name, "reset")
    assert same(seen.weights[2], as_new.weights[2])
    assert not same(seen.weights[3], as_new.weights[3])


@RANKS
@WITH_TWO
@pytest.mark.parametrize("name", INNER)
def test_average_gives_all_workers_the_same_buffers(name: str) -> None:
    first, *others = everyone(run(name, "average").buffers)
    assert first[1]
    for step, at_first in enumerate(first):
        assert all(same(at_first, other[step]) == (step % 2 == 0) for other in others), step
        assert step == 0 or not same(at_first, first[step - 1])


@RANKS
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", sorted({"Ftrl", "ScheduleFreeAdamW"} & set(INNER)))
def test_a_second_copy_of_the_weights_follows_them(name: str, strategy: str) -> None:
    """Or the next step would take each worker back to where it was before the sync."""
    weight = number(1.0)
    optimizer = hvd.DistributedOptimizer(
        INNER[name](), sync_period=2, slow_lr=0.5, buffers=strategy
    )
    for _ in range(2):
        step_with(optimizer, (1.0 + hvd.rank(), weight))
    synced = weight.numpy().item()
    assert 0.5 < synced < 1
    step_with(optimizer, (0.0, weight))
    assert weight.numpy().item() == pytest.approx(synced, abs=1e-6)


class FromACopy(keras.optimizers.Optimizer):  # type: ignore[misc]
    """An optimizer of the user's own that steps in a copy, and says so."""

    second_copies = ("fasts",)

    def build(self, variables: list[Any]) -> None:
        if not self.built:
            super().build(variables)
            self.fasts = self.add_optimizer_variables(variables, "fast")
            for fast, variable in zip(self.fasts, variables, strict=True):
                fast.assign(variable)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        fast = self.fasts[self._get_variable_index(variable)]
        self.assign_sub(fast, learning_rate * gradient)
        self.assign(variable, fast)


@RANKS
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_optimizer_of_the_users_own_names_its_copies(strategy: str) -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        FromACopy(1.0), sync_period=1, slow_lr=0.5, slow_momentum=0.5, buffers=strategy
    )
    step_with(optimizer, (1.0 + hvd.rank(), weight))
    synced = -0.5 if hvd.size() == 1 else -0.75
    assert weight.numpy().item() == synced
    step_with(optimizer, (0.0, weight))  # with the slow momentum of the first
    assert weight.numpy().item() == 1.5 * synced


@pytest.mark.ranks(1)
def test_what_it_names_must_be_names() -> None:
    inner = FromACopy(1.0)
    inner.second_copies = "fasts"
    optimizer = hvd.DistributedOptimizer(inner)
    with pytest.raises(TypeError, match=r"FromACopy.second_copies must be a tuple .* got 'fasts'"):
        step_with(optimizer, (1.0, number(0.0)))
