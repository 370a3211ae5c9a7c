"""Horovod's learning-rate callbacks in ``model.fit``, and their correction of the momentum.

The models are one weight w from 0, whose gradient is the target: the loss is y·w·1.
"""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
from keras_optimizers import of_keras
from one_weight import MODES, product
from ranks import by_rank

import slowmo_hvd.tensorflow.keras as hvd


def model_with(optimizer: keras.optimizers.Optimizer, shape: int = 1, **mode: Any) -> keras.Model:
    layer = keras.layers.Dense(shape, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((shape,)), layer])
    model.compile(optimizer, product, **{"jit_compile": False, **mode})
    return model


class Watch(keras.callbacks.Callback):  # type: ignore[misc]
    """Notes the learning rate of each batch and the weight after it."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[float] = []
        self.weights: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.rates.append(float(self.model.optimizer.learning_rate))
        self.weights.append(float(self.model.trainable_variables[0].numpy().flat[0]))


def train(
    model: keras.Model, callback: keras.callbacks.Callback, *, steps: int = 2, epochs: int = 2
) -> tuple[Watch, dict[str, list[float]]]:
    """Gradients of 1 in batches of 1."""
    watch = Watch()
    data = np.ones((steps, model.input_shape[1]), "float32")
    options = {"batch_size": 1, "epochs": epochs, "verbose": 0}
    history = model.fit(data, data, callbacks=[callback, watch], **options)
    return watch, history.history


def sgd(**options: Any) -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(1.0, **options)


# ---- the learning rate -----------------------------------------------------------------------


@pytest.mark.ranks(1)
def test_a_number_is_raised_to_the_epochs_since_the_start() -> None:
    schedule = hvd.callbacks.LearningRateScheduleCallback(4.0, 0.5, start_epoch=1, end_epoch=3)
    watch, history = train(model_with(sgd()), schedule, epochs=4)
    assert watch.rates == [1, 1, 4, 4, 2, 2, 2, 2]
    assert history["lr"] == [1, 4, 2, 2]
    assert all(type(rate) is float for rate in history["lr"])


@pytest.mark.ranks(1)
def test_a_staircase_asks_once_an_epoch_with_its_number() -> None:
    asked = []

    def multiplier(epoch: int) -> float:
        asked.append(epoch)
        return 1.0 + epoch

    schedule = hvd.callbacks.LearningRateScheduleCallback(8.0, multiplier)
    watch, _ = train(model_with(sgd()), schedule, steps=3)
    assert asked == [0, 1]
    assert watch.rates == [8, 8, 8, 16, 16, 16]


@pytest.mark.ranks(1)
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_without_staircase_every_batch_asks_with_a_part_of_an_epoch(mode: dict[str, Any]) -> None:
    asked = []

    def multiplier(epoch: float) -> float:
        asked.append(epoch)
        return 1.0 + epoch

    schedule = hvd.callbacks.LearningRateScheduleCallback(4.0, multiplier, staircase=False)
    watch, history = train(model_with(sgd(), **mode), schedule, steps=4)
    every = mode.get("steps_per_execution", 1)
    assert asked == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75][::every]
    assert watch.rates == [4, 5, 6, 7, 8, 9, 10, 11][::every]
    assert history["lr"] == [watch.rates[4 // every - 1], watch.rates[-1]]


@pytest.mark.ranks(1)
def test_data_of_unknown_length_needs_steps_per_epoch() -> None:
    def batches() -> Iterator[Any]:
        while True:
            yield np.ones((1, 1)), np.ones((1, 1))

    def fit(**options: Any) -> None:
        schedule = hvd.callbacks.LearningRateScheduleCallback(
            1.0, lambda epoch: epoch, staircase=False, **options
        )
        model = model_with(sgd())
        # One batch, and then no more.
        stop = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: setattr(model, "stop_training", batch == 1)
        )
        model.fit(batches(), shuffle=False, verbose=0, callbacks=[schedule, stop])
        assert float(model.optimizer.learning_rate) == 0.25

    text = r"Could not autodetect .* give LearningRateScheduleCallback\(\) or fit\(\) steps_per"
    with pytest.raises(ValueError, match=text):
        fit()
    fit(steps_per_epoch=4)


@pytest.mark.ranks(1)
def test_an_initial_learning_rate_is_required() -> None:
    for make in (
        lambda: hvd.callbacks.LearningRateScheduleCallback(None, 0.5),
        lambda: hvd.callbacks.LearningRateWarmupCallback(None),
    ):
        with pytest.raises(ValueError, match="Parameter `initial_lr` is required"):
            make()


@pytest.mark.ranks(1)
def test_an_optimizer_with_a_schedule_of_its_own_is_kerass_error() -> None:
    own = keras.optimizers.schedules.ExponentialDecay(1.0, 10, 0.9)
    schedule = hvd.callbacks.LearningRateScheduleCallback(1.0, 0.5)
    with pytest.raises(TypeError, match="its learning rate is not settable"):
        train(model_with(keras.optimizers.SGD(own)), schedule)


@pytest.mark.ranks(1, 2)
def test_the_warm_up_ends_every_epoch_on_a_round_value(capsys: pytest.CaptureFixture[str]) -> None:
    warmup = hvd.callbacks.LearningRateWarmupCallback(8.0, warmup_epochs=2, verbose=1)
    watch, history = train(model_with(sgd()), warmup, epochs=3)
    # On two ranks from 8/2 by 8/2 in 4 batches, each of which counts itself as done.
    expected = [[8.0] * 6, [5.0, 6.0, 7.0, 8.0, 8.0, 8.0]][hvd.size() - 1]
    assert watch.rates == expected
    assert history["lr"] == expected[1::2]
    said = "\nEpoch 2: finished gradual learning rate warmup to 8.\n"
    assert capsys.readouterr().out == by_rank(said, "")


@pytest.mark.ranks(2)
def test_a_silent_warm_up_and_one_of_given_steps(capsys: pytest.CaptureFixture[str]) -> None:
    warmup = hvd.callbacks.LearningRateWarmupCallback(8.0, warmup_epochs=1, steps_per_epoch=4)
    watch, _ = train(model_with(sgd()), warmup)
    assert watch.rates == [5, 6, 6, 6]
    assert capsys.readouterr().out == ""


# ---- the momentum ----------------------------------------------------------------------------

# Gradients of 1, μ = 1/2, and a learning rate of 1 for two batches, then 2 for two more: m is
# -1, -3/2; scaled by 2 and on, -7/2, -15/4. Without the correction -11/4, -27/8.
PLAIN = [-1, -2.5, -6, -9.75]
# Nesterov's w takes μ m - γ g instead of m.
NESTEROV = [-1.5, -3.25, -7, -10.875]
UNCORRECTED = [-1, -2.5, -5.25, -8.625]


def by_two(**options: Any) -> keras.callbacks.Callback:
    """A learning rate of 1 in the first epoch and 2 in the second."""
    return hvd.callbacks.LearningRateScheduleCallback(1.0, 2.0, **options)


OPTIMIZERS: dict[str, tuple[Any, list[float]]] = {
    "SGD": (lambda: sgd(momentum=0.5), PLAIN),
    "Nesterov": (lambda: sgd(momentum=0.5, nesterov=True), NESTEROV),
    # With ρ = ε = 0 its steps are γ g / |g|.
    "RMSprop": (lambda: keras.optimizers.RMSprop(1.0, 0.0, 0.5, 0.0), PLAIN),
    "no momentum": (sgd, [-1, -2, -4, -6]),
    "loss scale": (lambda: keras.optimizers.LossScaleOptimizer(sgd(momentum=0.5)), PLAIN),
    "SlowMo": (lambda: hvd.DistributedOptimizer(sgd(momentum=0.5), sync_period=100), PLAIN),
    "both": (
        lambda: hvd.DistributedOptimizer(
            keras.optimizers.LossScaleOptimizer(sgd(momentum=0.5)), sync_period=100
        ),
        PLAIN,
    ),
}


@pytest.mark.ranks(1)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_momentum_is_scaled_with_the_learning_rate(name: str) -> None:
    make, expected = OPTIMIZERS[name]
    watch, _ = train(model_with(make()), by_two())
    assert watch.weights == expected


@pytest.mark.ranks(1)
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_it_is_scaled_once_however_keras_runs_the_batches(mode: dict[str, Any]) -> None:
    watch, _ = train(model_with(sgd(momentum=0.5), **mode), by_two())
    every = mode.get("steps_per_execution", 1)
    assert watch.weights == PLAIN[every - 1 :: every]


@pytest.mark.ranks(1)
def test_it_is_scaled_in_every_batch_of_a_gradual_change() -> None:
    schedule = hvd.callbacks.LearningRateScheduleCallback(
        1.0, lambda epoch: 2 ** (2 * epoch), staircase=False
    )
    watch, _ = train(model_with(sgd(momentum=0.5)), schedule, steps=2, epochs=1)
    assert watch.rates == [1, 2]
    assert watch.weights == [-1, -1 + 0.5 * -2 - 2]


@pytest.mark.ranks(1)
def test_gradients_that_add_up_see_the_correction_in_their_step() -> None:
    optimizer = sgd(momentum=0.5, gradient_accumulation_steps=2)
    watch, _ = train(model_with(optimizer), by_two(), steps=3)
    # The second step has gradients of both epochs: m = 2·(-1)·1/2 - 2, then 1/2·(-3) - 2.
    assert watch.weights == [0, -1, -1, -4, -4, -7.5]


@pytest.mark.ranks(1)
def test_without_correction_momentum_remains() -> None:
    watch, _ = train(model_with(sgd(momentum=0.5)), by_two(momentum_correction=False))
    assert watch.weights == UNCORRECTED


@pytest.mark.ranks(1)
def test_a_learning_rate_of_zero_scales_nothing_to_infinity() -> None:
    schedule = hvd.callbacks.LearningRateScheduleCallback(1.0, lambda epoch: [1, 0, 1][epoch])
    watch, _ = train(model_with(sgd(momentum=0.5)), schedule, steps=1, epochs=3)
    assert watch.weights == [-1, -1, -2]


@pytest.mark.ranks(1)
@pytest.mark.parametrize("name", ["Muon", "Adam"])
def test_buffers_without_the_learning_rate_are_left_alone(name: str) -> None:
    runs = []
    for correction in (True, False):
        model = model_with(of_keras(name)(1.0), shape=2)
        train(model, by_two(momentum_correction=correction))
        runs.append([variable.numpy().tolist() for variable in model.optimizer.variables])
    assert runs[0] == runs[1]
