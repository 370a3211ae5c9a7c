"""What a worker that was left out of an average forgets, beyond what both adapters share."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_models import equal_on_all_ranks, fit, mlp, number, step_with
from ranks import by_rank, everyone

import slowmo_hvd.tensorflow as hvd

pytestmark = [
    pytest.mark.ranks(2),
    pytest.mark.filterwarnings("ignore:after . steps the weights of rank"),
]


@pytest.mark.parametrize("buffers", ["reset", "maintain", "average"])
def test_its_adam_corrects_its_bias_anew(buffers: str) -> None:
    """A first step of Adam is of the learning rate's size, whatever the gradient is."""
    weight = number(0.0)
    inner = keras.optimizers.Adam(0.5, epsilon=0.0)
    optimizer = hvd.DistributedOptimizer(inner, sync_period=2, slow_momentum=0.0, buffers=buffers)
    step_with(optimizer, (1.0, weight))
    step_with(optimizer, (by_rank(1.0, math.nan), weight))
    assert weight.numpy() == pytest.approx([-1.0], abs=1e-4)
    step_with(optimizer, (by_rank(1.0, 0.001), weight))
    assert weight.numpy() == pytest.approx([-1.5], abs=1e-4)
    assert int(inner.iterations.numpy()) == 3  # a schedule of learning rates goes on


def test_its_average_of_the_weights_begins_anew_too() -> None:
    weight = number(0.0)
    inner = keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5)
    optimizer = hvd.DistributedOptimizer(inner, sync_period=1, slow_momentum=0.0)
    step_with(optimizer, (by_rank(2.0, math.inf), weight))
    averages = everyone(inner._model_variables_moving_average[0].numpy().tolist())
    assert averages[1] == [-2.0]  # where its weights now are
    assert np.isfinite(averages[0]).all()


def test_the_gradients_that_it_was_adding_up_are_gone() -> None:
    weight = number(0.0)
    inner = keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    optimizer = hvd.DistributedOptimizer(inner, sync_period=1, slow_momentum=0.0)
    for gradient in (1.0, by_rank(3.0, math.nan), 1.0, 1.0):
        step_with(optimizer, (gradient, weight))
    assert weight.numpy() == [-3.0]


def test_moving_statistics_that_broke_become_the_others() -> None:
    model = mlp(0, keras.layers.BatchNormalization())
    layer = model.layers[1]
    model.compile(optimizer=hvd.DistributedOptimizer(keras.optimizers.SGD(0.01)), loss="mse")
    fit(model, range(2))
    layer.moving_mean.assign(tf.fill(layer.moving_mean.shape, by_rank(3.0, math.nan)))
    layer.moving_variance.assign(tf.fill(layer.moving_variance.shape, math.nan))
    model.optimizer._training.counters.statistics_at.assign(0)
    model.optimizer.flush()
    assert layer.moving_mean.numpy().tolist() == [3.0] * 4
    assert np.isnan(layer.moving_variance.numpy()).all()  # of which nobody has a sound one


def test_fit_goes_on_and_ends_with_one_finite_model() -> None:
    model = mlp()
    model.compile(
        optimizer=hvd.DistributedOptimizer(keras.optimizers.SGD(0.1), sync_period=3), loss="mse"
    )
    fit(model, range(2))
    if hvd.rank() == 1:
        model.trainable_variables[0].assign(tf.fill((3, 4), math.nan))
    fit(model, range(2, 9))
    assert equal_on_all_ranks(model)
    assert all(np.isfinite(variable.numpy()).all() for variable in model.variables)
