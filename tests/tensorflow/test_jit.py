"""XLA has no collectives: it is turned off with one warning, or refused in one sentence."""

import warnings
from pathlib import Path

import keras
import pytest
import tensorflow as tf
from keras_models import equal_on_all_ranks, fit, mlp

import slowmo_hvd.tensorflow as hvd

pytestmark = pytest.mark.ranks(1, 2)


def optimizer() -> hvd.DistributedOptimizer:
    return hvd.DistributedOptimizer(keras.optimizers.SGD(0.1), sync_period=2)


def test_compile_with_jit_turns_it_off_with_one_warning_and_trains() -> None:
    model = mlp()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        model.compile(optimizer=optimizer(), loss="mse", jit_compile=True)
        fit(model, range(3))
    assert str(caught[0].message).startswith("jit_compile is turned off for this model")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert model.jit_compile is False
    assert model.optimizer.sync_stats.syncs == 2
    assert equal_on_all_ranks(model)


def test_auto_on_a_machine_with_a_gpu_is_turned_off_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.Model, "_resolve_auto_jit_compile", lambda self: True)
    model = mlp()
    with pytest.warns(UserWarning, match="jit_compile is turned off"):
        model.compile(optimizer=optimizer(), loss="mse")
    fit(model, range(2))
    assert equal_on_all_ranks(model)


def test_no_warning_where_there_is_nothing_to_turn_off(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mlp().compile(optimizer=optimizer(), loss="mse")
        mlp().compile(optimizer=optimizer(), loss="mse", jit_compile=False)


def test_other_optimizers_keep_their_jit() -> None:
    model = mlp()
    model.compile(optimizer="sgd", loss="mse", jit_compile=True)
    assert model.jit_compile is True


def test_a_function_of_the_users_with_jit_is_refused_before_anything_is_sent() -> None:
    weight = tf.Variable([1.0])
    ours = optimizer()

    @tf.function(jit_compile=True)
    def step() -> None:
        ours.apply_gradients([(tf.constant([1.0]), weight)])

    with pytest.raises(ValueError, match="cannot step inside XLA"):
        step()
    assert weight.numpy() == [1.0]
