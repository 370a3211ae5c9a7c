"""A run ends with one model: flush, the end of ``fit``, moving statistics, averages of weights."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_models import equal_on_all_ranks, fit, mlp, number, same, step_with, train, weights
from ranks import by_rank, everyone

import slowmo_hvd.tensorflow as hvd
import slowmo_hvd.tensorflow.keras as hvd_keras

pytestmark = pytest.mark.ranks(2)


def wrapped(inner: keras.optimizers.Optimizer | None = None, period: int = 3):
    return hvd.DistributedOptimizer(inner or keras.optimizers.SGD(0.5), sync_period=period)


def test_a_flush_averages_and_begins_a_window() -> None:
    weight = number(1.0)
    optimizer = wrapped()
    step_with(optimizer, (by_rank(1.0, 3.0), weight))
    assert weight.numpy() == [by_rank(0.5, -0.5)]
    optimizer.flush()  # d̄ = 1, γ = 0.5, u = 2, x = 1 - 0.5 · 2
    assert weight.numpy() == [0.0]
    optimizer.flush()  # at a window's start: nothing
    assert weight.numpy() == [0.0]
    assert optimizer.sync_stats.syncs == 1
    for _ in range(3):
        step_with(optimizer, (0.0, weight))
    assert optimizer.sync_stats.syncs == 2  # a whole window after it


def test_a_flush_before_the_first_step_does_nothing() -> None:
    optimizer = wrapped()
    optimizer.flush()
    optimizer.build([number(1.0)])
    optimizer.flush()
    assert optimizer.sync_stats.syncs == 0


def test_a_flush_inside_a_function_is_refused() -> None:
    optimizer = wrapped()
    step_with(optimizer, (1.0, number(1.0)))
    with pytest.raises(RuntimeError, match=r"flush\(\) cannot be called inside tf\.function"):
        tf.function(optimizer.flush, autograph=False)()


@pytest.mark.parametrize("steps", [6, 7])
def test_fit_ends_with_one_model_moving_statistics_included(steps: int) -> None:
    model = mlp(0, keras.layers.BatchNormalization())
    model.compile(optimizer=wrapped(), loss="mse")
    during: list[bool] = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda step, logs: during.append(weights(model)[4])
    )
    fit(model, range(steps), callbacks=[watch])
    moving = everyone(during[-1])
    assert not np.array_equal(*moving)  # each worker's own, until the end
    assert equal_on_all_ranks(model)
    assert np.allclose(weights(model)[4], np.mean(moving, axis=0))


def test_a_flush_in_a_loop_averages_the_statistics_of_the_model_it_is_given() -> None:
    model = mlp(0, keras.layers.BatchNormalization())
    optimizer = wrapped()
    train(model, optimizer, range(4))
    optimizer.flush()
    assert equal_on_all_ranks(model.trainable_variables)
    assert not equal_on_all_ranks(model)
    optimizer.flush(model)
    assert equal_on_all_ranks(model)


def test_frozen_layers_keep_every_bit_and_are_not_sent() -> None:
    model = mlp(0, keras.layers.Dense(4, name="frozen"))
    hvd.broadcast_variables(model.variables, root_rank=0)
    model.get_layer("frozen").trainable = False
    before = weights(model.get_layer("frozen").variables)
    optimizer = wrapped()
    model.compile(optimizer=optimizer, loss="mse")
    fit(model, range(4))
    assert same(weights(model.get_layer("frozen").variables), before)
    trained = sum(variable.numpy().size for variable in model.trainable_variables)
    assert optimizer.sync_stats.last.bytes == 4 * trained + 8 * 7  # and seven figures


def test_an_average_of_the_weights_ends_as_the_workers_mean_of_it() -> None:
    inner = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
    model = mlp()
    model.compile(optimizer=wrapped(inner), loss="mse")
    fit(model, range(4))
    averages = everyone(weights(inner._model_variables_moving_average))
    assert not same(*averages)
    for weight, *of_all in zip(weights(model), *averages, strict=True):
        assert np.allclose(weight, np.mean(of_all, axis=0), rtol=1e-6)
    assert equal_on_all_ranks(model)
    model.optimizer.learning_rate = 0.0
    fit(model, [4])  # goes on from there: the jump to the average is no progress of the next window
    assert equal_on_all_ranks(model)
    assert all(np.isfinite(weight).all() for weight in weights(model))


def test_validation_on_the_average_when_asked_for(tmp_path: Path) -> None:
    def validated(*callbacks: keras.callbacks.Callback) -> list[float]:
        model = mlp()
        model.compile(optimizer=wrapped(period=100), loss="mse")
        x, y = np.ones((5, 3), "float32"), np.ones((5, 2), "float32")
        history = fit(model, range(3), epochs=2, validation_data=(x, y), callbacks=list(callbacks))
        return history.history["val_loss"]

    first, second = everyone(validated())
    assert first != second
    first, second = everyone(validated(hvd_keras.callbacks.FlushCallback()))
    assert first == second


def test_a_constraint_holds_after_the_slow_step_too() -> None:
    layer = keras.layers.Dense(
        1, use_bias=False, kernel_initializer="ones", kernel_constraint="non_neg"
    )
    layer.build((None, 1))
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(1.0), sync_period=1, slow_momentum=0.9
    )
    for gradient in (0.75, 0.0, 0.0):  # u = 0.75, 0.675, ...: 1 → 0.25 → -0.425, hence 0
        optimizer.apply_gradients([(tf.constant([[gradient]]), layer.kernel)])
    assert weights([layer.kernel])[0] == 0
    assert equal_on_all_ranks([layer.kernel])
