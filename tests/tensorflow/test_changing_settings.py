"""τ, α and β as functions in Keras: in a graph, saved and loaded, and equal on all ranks."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from courses import CHANGING
from keras_models import equal_on_all_ranks, fit, mlp, weights
from ranks import by_rank, same_error_everywhere

import slowmo_hvd.tensorflow as hvd


@keras.saving.register_keras_serializable(package="tests")
def growing(steps: int) -> int:
    """A function of the user's that Keras knows by its name."""
    return 2 + steps // 4


def compiled(steps_per_execution: int = 1, **settings: Any) -> Any:
    keras.utils.set_random_seed(1)
    model = mlp()
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.9)
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(schedule), **settings)
    model.compile(optimizer, loss="mse", steps_per_execution=steps_per_execution)
    return model


@pytest.mark.ranks(2)
@pytest.mark.pairwise
@pytest.mark.parametrize("name", [*CHANGING, "registered"])
@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_a_saved_model_goes_on_with_the_periods_that_it_had(
    name: str, steps_per_execution: int, tmp_path: Path
) -> None:
    settings = {**CHANGING, "registered": {"sync_period": growing}}[name]
    if name == "functions":
        settings = {**settings, "sync_period": growing, "slow_lr": 0.5}  # not known to Keras
    model = compiled(steps_per_execution, **settings)
    fit(model, range(10))
    model.save(path := tmp_path / f"{hvd.rank()}.keras")
    resumed = keras.saving.load_model(path)
    told: list[list[int]] = [[], []]
    for periods, one in zip(told, (model, resumed), strict=True):
        one.optimizer.register_sync_hook(lambda record, to=periods: to.append(record.sync_period))
        fit(one, range(10, 25))
    assert told[0] == told[1]
    assert len(set(told[0])) > 1
    assert equal_on_all_ranks(resumed)
    for ours, theirs in zip(weights(resumed), weights(model), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.ranks(2)
def test_a_function_that_differs_is_found_in_the_first_step_and_at_each_windows_start() -> None:
    def step(optimizer: hvd.DistributedOptimizer) -> None:
        optimizer.apply([tf.constant([1.0])], [variable])

    variable = keras.Variable([0.0])
    inner = keras.optimizers.SGD(0.1)
    at_once = hvd.DistributedOptimizer(inner, sync_period=lambda steps: by_rank(2, 3))
    words = "the ranks differ in steps of the window: 2 on rank 0, 3 on rank 1"
    same_error_everywhere(ValueError, words, lambda: step(at_once))
    later = hvd.DistributedOptimizer(
        keras.optimizers.SGD(0.1), sync_period=lambda steps: 2 + (steps > 0) * hvd.rank()
    )
    step(later)
    words = r"in the sync after step 2: sync_period=2, .* on rank 0, sync_period=3, .* on rank 1"
    same_error_everywhere(RuntimeError, words, lambda: step(later))


@pytest.mark.ranks(1)
def test_a_lambda_is_warned_of_when_it_is_saved_and_refused_when_it_is_loaded(
    tmp_path: Path,
) -> None:
    model = compiled(sync_period=lambda steps: 3)
    fit(model, range(4))
    with pytest.warns(UserWarning, match="includes a `lambda`"):
        model.save(path := tmp_path / "model.keras")
    with pytest.raises(ValueError, match="lambda"):
        keras.saving.load_model(path)
