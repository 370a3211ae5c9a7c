"""Learning rates that change: Keras' schedules and callbacks, with the wrapped optimizer as any."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_models import batches, equal_on_all_ranks, fit, mlp, number, step_with, weights
from keras_optimizers import of_keras
from ranks import by_rank, everyone

import slowmo_hvd.tensorflow as hvd

# NumPy 2 about Keras 3.15, in the callbacks that read a learning rate.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
RANKS = pytest.mark.ranks(1, 2)


class Halving(keras.optimizers.schedules.LearningRateSchedule):
    """1, 1/2, 1/4, ..."""

    def __call__(self, step: Any) -> Any:
        return 0.5 ** tf.cast(step, "float32")


def steps(optimizer: Any, weight: tf.Variable, gradients: list[float], graph: bool) -> list[float]:
    """The weight after a step with each gradient."""

    def step(g: Any) -> None:
        optimizer.apply_gradients([(tf.reshape(g, [1]), weight)])

    run, seen = tf.function(step) if graph else step, []
    for g in gradients:
        run(tf.constant(g))
        seen.append(weight.numpy().item())
    return seen


@RANKS
@pytest.mark.parametrize("graph", [False, True])
def test_a_reset_restarts_the_bias_correction_and_not_the_schedule(graph: bool) -> None:
    """The first step of an Adam newly made is γ long, whatever the gradient."""
    weight = number(0.0)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1, 3], [1.0, 0.5, 0.25])
    inner = keras.optimizers.Adam(schedule, 0.75, 0.9375, epsilon=0.0)
    optimizer = hvd.DistributedOptimizer(inner, sync_period=1, slow_momentum=0.0, buffers="reset")
    seen = steps(optimizer, weight, [1.0, 10.0, 0.1, -5.0, 2.0, 0.5], graph)
    assert seen == pytest.approx([-1.0, -2.0, -2.5, -2.0, -2.25, -2.5], abs=1e-5)
    assert int(optimizer.iterations) == int(inner.iterations) == 6


@RANKS
@pytest.mark.parametrize("graph", [False, True])
def test_a_reset_with_gradients_that_add_up_does_not_rewind_the_schedule(graph: bool) -> None:
    """Keras' schedules count the gradients that are added up, and its Adam its own steps."""
    weight = number(0.0)
    inner = keras.optimizers.Adam(
        Halving(), 0.75, 0.9375, epsilon=0.0, gradient_accumulation_steps=2
    )
    optimizer = hvd.DistributedOptimizer(inner, sync_period=1, slow_momentum=0.0, buffers="reset")
    seen = steps(optimizer, weight, [1.0, 7.0, 0.1, 5.0, 3.0, 0.5], graph)
    assert seen == pytest.approx([0.0, -0.5, -0.5, -0.625, -0.625, -0.65625], abs=1e-5)
    last = optimizer.sync_stats.last
    assert last is not None
    assert (last.step, last.learning_rates) == (3, (2.0**-5,))
    assert int(optimizer.iterations) == 3


@RANKS
@pytest.mark.parametrize("graph", [False, True])
def test_a_negative_learning_rate_maximises_with_the_slow_momentum_on(graph: bool) -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(-0.5), sync_period=1, slow_momentum=0.5
    )
    gradients = [float(by_rank(1.0, 3.0)), 0.0]
    once = 0.5 if hvd.size() == 1 else 1.0  # u = 1 or 2, then half of it
    assert steps(optimizer, weight, gradients, graph) == [once, 1.5 * once]


@RANKS
@pytest.mark.parametrize("buffers", ["reset", "maintain", "average"])
def test_the_count_of_steps_never_falls(buffers: str) -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.1)),
        sync_period=2,
        buffers=buffers,
    )
    counts = []
    for _ in range(5):
        step_with(optimizer, (1.0, weight))
        counts.append(int(optimizer.iterations))
    assert counts == [1, 2, 3, 4, 5]


@RANKS
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("how", ["schedule", "function", "set by hand"])
def test_gamma_of_a_window_is_the_mean_of_its_steps(how: str, graph: bool) -> None:
    weight, count = number(0.0), tf.Variable(0.0)
    rate: Any = {
        "schedule": Halving(),
        "function": lambda: 0.5**count,
        "set by hand": 1.0,
    }[how]
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(rate), sync_period=2, slow_momentum=0.5
    )

    def step(g: Any) -> None:
        optimizer.apply_gradients([(tf.reshape(g, [1]), weight)])

    run = tf.function(step) if graph else step
    seen = []
    for g in (1.0, 1.0, 0.0, 0.0):
        run(tf.constant(g))
        count.assign_add(1.0)
        if how == "set by hand":
            optimizer.learning_rate = optimizer.learning_rate / 2
        last = optimizer.sync_stats.last
        seen.append((weight.numpy().item(), last and last.learning_rates))
    # u = 1.5 / 0.75 = 2; then, with no gradient, x falls by γ β u = 0.1875 · 0.5 · 2.
    assert seen == [(-1.0, None), (-1.5, (0.75,)), (-1.5, (0.75,)), (-1.6875, (0.1875,))]


@RANKS
def test_the_outer_step_shrinks_at_once_when_the_learning_rate_does() -> None:
    """u counts in gradients, not in displacements: that is what 1/γ is for."""
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(1.0), sync_period=2, slow_momentum=0.5
    )
    for lr, expected in [(1.0, -1.0), (1.0, -2.0), (0.125, -2.125), (0.125, -2.375)]:
        optimizer.learning_rate = lr
        step_with(optimizer, (1.0, weight))
        assert weight.numpy().item() == expected  # u = 2; then x = -2 - 0.125 · (0.5·2 + 2)


@RANKS
def test_a_window_at_learning_rate_0_changes_nothing_and_divides_by_nothing() -> None:
    weight = number(0.0)
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([0, 2], [1.0, 0.0, 1.0])
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(rate), sync_period=1, slow_momentum=0.5
    )
    for expected in (-1.0, -1.0, -1.0, -2.5):  # the last: u = 0.5·1 + 1, as if none was between
        step_with(optimizer, (1.0, weight))
        assert weight.numpy().item() == expected


@RANKS
def test_the_optimizers_in_a_multi_optimizer_have_a_gamma_each() -> None:
    first, second = number(0.0), tf.Variable([[0.0]])
    inners = [keras.optimizers.SGD(1.0), keras.optimizers.SGD(0.25)]
    both = of_keras("MultiOptimizer")(lambda variable: inners[len(variable.shape) - 1])
    optimizer = hvd.DistributedOptimizer(both, sync_period=1, slow_momentum=0.5)
    for _ in range(2):
        step_with(optimizer, (1.0, second), (1.0, first))
    assert optimizer.sync_stats.last is not None
    assert sorted(optimizer.sync_stats.last.learning_rates) == [0.25, 1.0]
    assert (first.numpy().item(), second.numpy().item()) == (-2.5, -0.625)  # γ (1 + 1.5)


@pytest.mark.ranks(2)
def test_ranks_whose_learning_rates_part_still_hold_one_model() -> None:
    """γ is the mean over the ranks: a callback may look at a rank's own loss."""
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(1.0), sync_period=1, slow_momentum=0.5
    )
    step_with(optimizer, (1.0, weight))
    optimizer.learning_rate = by_rank(1.0, 0.5)
    step_with(optimizer, (1.0, weight))
    assert weight.numpy().item() == -2.125  # d̄ = γ = 0.75, u = 0.5·1 + 1, x = -1 - 0.75·1.5
    assert optimizer.sync_stats.last is not None
    assert set(everyone(optimizer.sync_stats.last.learning_rates)) == {(0.75,)}


# ---- callbacks -----------------------------------------------------------------------------

CALLBACKS: dict[str, tuple[Callable[[], Any], list[float]]] = {
    "LearningRateScheduler": (
        lambda: keras.callbacks.LearningRateScheduler(lambda epoch, lr: lr / 2 if epoch else 0.5),
        [0.5, 0.25, 0.125],
    ),
    "ReduceLROnPlateau": (
        # No epoch is better by 1e9 but the first.
        lambda: keras.callbacks.ReduceLROnPlateau("loss", factor=0.25, patience=1, min_delta=1e9),
        [1.0, 0.25, 0.0625],
    ),
}


@RANKS
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_sets_the_learning_rate_in_fit(name: str) -> None:
    make, rates = CALLBACKS[name]
    gammas = []
    model = mlp()
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0, clipnorm=0.01), sync_period=2)
    optimizer.register_sync_hook(lambda record: gammas.append(record.learning_rates))
    model.compile(optimizer, loss="mse")
    after_epoch = []
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: after_epoch.append(float(optimizer.learning_rate.numpy()))
    )
    fit(model, range(4), epochs=3, callbacks=[make(), record])
    assert after_epoch == rates
    # The plateau's is set at the end of an epoch, the scheduler's at its beginning.
    during = rates if name == "LearningRateScheduler" else [1.0, *rates[:-1]]
    assert gammas == [(rate,) for rate in during for _ in range(2)]


@RANKS
def test_a_schedule_goes_on_from_fit_to_fit() -> None:
    model, gammas = mlp(), []
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(Halving()), sync_period=1)
    optimizer.register_sync_hook(lambda record: gammas.append(record.learning_rates[0]))
    model.compile(optimizer, loss="mse")
    for _ in range(2):
        model.fit(*batches(range(3)), batch_size=5, verbose=0)
    assert gammas == [2.0**-n for n in range(6)]
    assert equal_on_all_ranks(model)
    assert all(np.isfinite(weight).all() for weight in weights(model))


@RANKS
def test_a_learning_rate_that_is_a_schedule_cannot_be_set_as_in_keras() -> None:
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(Halving()))
    with pytest.raises(TypeError, match="created with a `LearningRateSchedule`"):
        optimizer.learning_rate = 0.5
