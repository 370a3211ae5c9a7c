"""What is frozen stays where it is and is not sent; what is thawed begins afresh; on all ranks."""

import contextlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_models import equal_on_all_ranks, fit, mlp, same, step_with, train, weights
from keras_optimizers import of_keras
from ranks import by_rank, everyone, same_error_everywhere

import slowmo_hvd.tensorflow as hvd
import slowmo_hvd.tensorflow.keras as hvd_keras

pytestmark = pytest.mark.ranks(2)


def two_numbers() -> tuple[keras.Variable, keras.Variable]:
    return keras.Variable([0.0]), keras.Variable([0.0, 0.0])


def wrapped(inner: keras.optimizers.Optimizer | None = None, **slowmo: Any) -> Any:
    slowmo = {"sync_period": 2, "slow_momentum": 0.5} | slowmo
    return hvd.DistributedOptimizer(inner or keras.optimizers.SGD(1.0), **slowmo)


def values(*variables: Any) -> list[list[float]]:
    return [variable.numpy().tolist() for variable in variables]


def network() -> keras.Model:
    middle = keras.layers.Dense(4, kernel_initializer="ones")
    model = mlp(0, middle, keras.layers.BatchNormalization())
    optimizer = wrapped(keras.optimizers.SGD(0.1, momentum=0.9), slow_momentum=0.8)
    model.compile(optimizer, "mse", jit_compile=False)
    return model


def test_a_variable_frozen_at_a_windows_start_moves_no_more_and_is_not_sent() -> None:
    a, b = two_numbers()
    optimizer = wrapped()
    for _ in range(2):
        step_with(optimizer, (by_rank(1.0, 3.0), a), (1.0, b))
    assert values(a, b) == [[-4.0], [-2.0, -2.0]]  # u = 4 and 2
    sent = optimizer.sync_stats.last.bytes
    b.trainable = False
    for _ in range(4):
        step_with(optimizer, (0.0, a))
    assert values(a, b) == [[-7.0], [-2.0, -2.0]]  # a by 0.5 · 4, then by 0.25 · 4
    assert optimizer.sync_stats.syncs == 3
    assert optimizer.sync_stats.last.bytes == sent - 8
    b.assign([5.0, by_rank(5.0, 6.0)])  # somebody else's business
    optimizer.flush()
    step_with(optimizer, (0.0, a))
    optimizer.flush()
    assert values(b) == [[5.0, by_rank(5.0, 6.0)]]


def test_a_variable_frozen_inside_a_window_takes_the_workers_mean_and_the_window_goes_on() -> None:
    a, b = two_numbers()
    optimizer = wrapped(sync_period=3)
    for _ in range(3):
        step_with(optimizer, (1.0, a), (1.0, b))
    assert values(a, b) == [[-3.0], [-3.0, -3.0]]
    step_with(optimizer, (1.0, a), (by_rank(1.0, 2.0), b))
    b.trainable = False
    step_with(optimizer, (1.0, a))
    assert values(a, b) == [[-5.0], [-4.5, -4.5]]
    step_with(optimizer, (1.0, a))
    assert values(a, b) == [[-7.5], [-4.5, -4.5]]  # u = 0.5 · 3 + 3
    assert optimizer.sync_stats.last.step == 6


def test_a_variable_thawed_begins_from_the_roots_value_without_a_slow_momentum() -> None:
    a, b = two_numbers()
    optimizer = wrapped()
    for _ in range(2):
        step_with(optimizer, (1.0, a), (1.0, b))
    b.trainable = False
    step_with(optimizer, (1.0, a))
    b.assign([by_rank(1.0, 9.0), 1.0])
    b.trainable = True
    with (
        pytest.warns(UserWarning, match="up to 8 apart") if hvd.rank() else contextlib.nullcontext()
    ):
        step_with(optimizer, (1.0, a), (0.25, b))
    assert values(a, b) == [[-5.0], [0.75, 0.75]]  # a as if b had never been frozen
    for _ in range(2):
        step_with(optimizer, (0.0, a), (0.0, b))
    assert values(a, b) == [[-6.5], [0.625, 0.625]]
    assert equal_on_all_ranks([a, b])


def test_a_variable_frozen_from_the_beginning_is_not_sent_and_not_compared() -> None:
    a, b = keras.Variable([0.0]), keras.Variable([float(hvd.rank())] * 8, trainable=False)
    optimizer = wrapped()
    optimizer.build([a, b])
    for _ in range(2):
        step_with(optimizer, (1.0, a))
    assert optimizer.sync_stats.last.bytes == 4 + 8 * 7  # and seven figures
    assert values(b) == [[float(hvd.rank())] * 8]


def test_layers_frozen_between_two_fits_stay_bit_for_bit_and_thaw() -> None:
    model = mlp(
        0, keras.layers.Dense(4, kernel_initializer="ones"), keras.layers.BatchNormalization()
    )
    optimizer = wrapped(keras.optimizers.SGD(0.1, momentum=0.9), slow_momentum=0.8)
    model.compile(optimizer, "mse", jit_compile=False)
    fit(model, range(4))
    whole = optimizer.sync_stats.last.bytes
    layer = model.layers[1]
    for trainable in (False, True):
        before = weights(layer.variables)
        layer.trainable = trainable
        model.compile(optimizer, "mse", jit_compile=False)
        fit(model, range(5))
        assert same(weights(layer.variables), before) == (not trainable)
        frozen = 0 if trainable else sum(weight.size for weight in before)
        assert optimizer.sync_stats.last.bytes == whole - 4 * frozen
        assert equal_on_all_ranks(model)


def test_buffers_of_frozen_variables_are_not_averaged() -> None:
    a, b = two_numbers()
    inner = keras.optimizers.Adam(0.5)
    optimizer = wrapped(inner, buffers="average")
    for _ in range(2):
        step_with(optimizer, (1.0, a), (by_rank(1.0, 2.0), b))
    sent = optimizer.sync_stats.last.bytes
    b.trainable = False
    inner._momentums[1].assign([hvd.rank()] * 2)
    for _ in range(2):
        step_with(optimizer, (by_rank(1.0, 2.0), a))
    assert optimizer.sync_stats.last.bytes == sent - 3 * 8
    assert inner._momentums[1].numpy().tolist() == [hvd.rank()] * 2
    assert equal_on_all_ranks([inner._momentums[0], inner._velocities[0]])


def test_an_average_of_the_weights_does_not_move_frozen_ones_apart() -> None:
    a, b = two_numbers()
    inner = keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3)
    optimizer = wrapped(inner)
    for _ in range(2):
        step_with(optimizer, (1.0, a), (by_rank(1.0, 2.0), b))
    b.trainable = False
    for _ in range(2):
        step_with(optimizer, (1.0, a))
    assert equal_on_all_ranks([a, b, *inner._model_variables_moving_average[1:]])


@pytest.mark.parametrize("inner", ["Ftrl", "ScheduleFreeAdamW"])
def test_a_second_copy_of_the_weights_follows_where_they_thaw(inner: str) -> None:
    a, b = two_numbers()
    optimizer = wrapped(of_keras(inner)(0.1), sync_period=4)
    for _ in range(2):
        step_with(optimizer, (1.0, a), (by_rank(1.0, 2.0), b))
    b.trainable = False
    step_with(optimizer, (1.0, a))
    b.assign([3.0, 3.0])
    b.trainable = True
    step_with(optimizer, (1.0, a), (0.0, b))
    np.testing.assert_allclose(b.numpy(), [3.0, 3.0], rtol=0.02)
    assert equal_on_all_ranks([a, b])


@pytest.mark.parametrize("compression", [hvd.Compression.none, hvd.Compression.fp16])
def test_a_rank_that_freezes_alone_stops_all(compression: Any) -> None:
    a, b = two_numbers()
    optimizer = wrapped(compression=compression)
    step_with(optimizer, (1.0, a), (1.0, b))
    b.trainable = hvd.rank() == 0
    text = "rank 1 changed which parameters to train, and rank 0 did not: freeze, thaw"
    pairs = [(1.0, a), (1.0, b)][: 2 - hvd.rank()]
    with pytest.raises((RuntimeError, tf.errors.OpError), match=text):
        step_with(optimizer, *pairs)
    everyone(None)


def test_ranks_that_freeze_different_layers_stop_all() -> None:
    a, b = two_numbers()
    optimizer = wrapped()
    step_with(optimizer, (1.0, a), (1.0, b))
    (a, b)[hvd.rank()].trainable = False
    text = (
        r"frozen parameters: number 0 is 'number 0, \[1\]' on rank 0, 'number 1, \[2\]' on rank 1"
    )
    same_error_everywhere(ValueError, text, lambda: step_with(optimizer, (1.0, by_rank(b, a))))


def test_a_worker_whose_weights_broke_is_left_out_of_the_mean_where_they_are_frozen() -> None:
    a, b = two_numbers()
    optimizer = wrapped(sync_period=4)
    step_with(optimizer, (1.0, a), (by_rank(1.0, float("nan")), b))
    b.trainable = False
    with pytest.warns(UserWarning, match="were frozen are not finite on rank 1"):
        step_with(optimizer, (1.0, a))
    assert values(a, b) == [[-2.0], [-1.0, -1.0]]


def test_a_frozen_variable_with_a_gradient_is_refused() -> None:
    a, b = two_numbers()
    optimizer = wrapped()
    step_with(optimizer, (1.0, a), (1.0, b))
    b.trainable = False
    with pytest.raises(ValueError, match=r"has a gradient and trainable=False: give the gradients"):
        step_with(optimizer, (1.0, a), (1.0, b))


def test_a_graph_made_before_the_change_is_refused_after_it() -> None:
    a, b = two_numbers()
    optimizer = wrapped(sync_period=9)
    optimizer.build([a, b])

    @tf.function(autograph=False)
    def both() -> None:
        step_with(optimizer, (1.0, a), (1.0, b))

    both()
    b.trainable = False
    both()  # goes on, as with a bare optimizer
    assert values(a, b) == [[-2.0], [-2.0, -2.0]]
    step_with(optimizer, (1.0, a))
    with pytest.raises(
        (RuntimeError, tf.errors.OpError), match="made when other variables were trained: after"
    ):
        both()
    b.trainable = True
    step_with(optimizer, (1.0, a), (1.0, b))
    both()


def test_freezing_for_another_optimizers_step_only_changes_nothing() -> None:
    """As scripts freeze the discriminator of a GAN while the generator trains."""
    a, b = two_numbers()
    optimizer = wrapped(sync_period=3)
    for _ in range(2):
        a.trainable = b.trainable = True
        step_with(optimizer, (1.0, a), (1.0, b))
        a.trainable = b.trainable = False
    optimizer.flush()
    assert values(a, b) == [[-2.0], [-2.0, -2.0]]
    assert optimizer.sync_stats.syncs == 1


@pytest.mark.parametrize("thawed_on_loading", [False, True])
@pytest.mark.parametrize("steps", [4, 5])  # at a window's start, and inside one
def test_a_model_with_frozen_layers_is_saved_and_goes_on_as_if_it_had_not_been(
    steps: int, thawed_on_loading: bool, tmp_path: Path
) -> None:
    model = network()
    train(model, model.optimizer, range(2))
    model.layers[0].trainable = False
    train(model, model.optimizer, range(2, steps))
    model.save(tmp_path / f"{hvd.rank()}.keras")
    resumed = hvd_keras.load_model(tmp_path / f"{hvd.rank()}.keras")
    for each in (model, resumed):
        each.layers[0].trainable = thawed_on_loading
        train(each, each.optimizer, range(steps, 8))
    assert same(weights(resumed), weights(model))
    assert same(weights(resumed.optimizer.variables), weights(model.optimizer.variables))
    model.optimizer.flush(model)
    assert equal_on_all_ranks(model)


def test_a_model_saved_before_layers_are_frozen_begins_without_their_slow_momentum(
    tmp_path: Path,
) -> None:
    model = network()
    train(model, model.optimizer, range(2))
    model.save(tmp_path / f"{hvd.rank()}.keras")
    resumed = hvd_keras.load_model(tmp_path / f"{hvd.rank()}.keras")
    for each in (model, resumed):
        each.layers[0].trainable = False
        train(each, each.optimizer, range(2, 6))
    assert same(weights(resumed), weights(model))
    assert same(weights(resumed.optimizer.variables), weights(model.optimizer.variables))
