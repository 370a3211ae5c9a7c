"""Models that are built late: the first step makes their variables, in every way to train."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras_models import Array, batch, equal_on_all_ranks, fit, same, train, weights
from keras_optimizers import of_keras
from ranks import everyone

import slowmo_hvd.tensorflow as hvd
from slowmo_hvd.tensorflow.keras import callbacks

RANKS = pytest.mark.ranks(2)
STEPS = 5
SYNCS = [2, 4, 5]  # the last is the flush


def dense(units: int = 2, seed: int = 0, **options: Any) -> keras.layers.Layer:
    normal = keras.initializers.RandomNormal(stddev=0.5, seed=seed)
    return layers.Dense(units, kernel_initializer=normal, **options)


def normalised() -> keras.Model:
    dropout = layers.Dropout(0.3, seed=3)
    first = dense(4, use_bias=False)  # whose gradient would be mere rounding
    return keras.Sequential([first, layers.BatchNormalization(), dropout, dense()])


MODELS: dict[str, Callable[[], keras.Model]] = {
    "dense": lambda: keras.Sequential([dense(4, activation="tanh"), dense()]),
    "normalised, dropping": normalised,
}
INNER: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "SGD": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "Adam": lambda: keras.optimizers.Adam(0.05),
}


def wrapped(inner: keras.optimizers.Optimizer, **options: Any) -> hvd.DistributedOptimizer:
    return hvd.DistributedOptimizer(inner, sync_period=2, **options)


def in_fit(
    model: keras.Model,
    optimizer: hvd.DistributedOptimizer,
    *given: keras.callbacks.Callback,
    **options: Any,
) -> None:
    model.compile(optimizer, loss="mse", **options)
    fit(model, range(STEPS), callbacks=list(given))


def with_callbacks(model: keras.Model, optimizer: hvd.DistributedOptimizer) -> None:
    in_fit(
        model,
        optimizer,
        callbacks.BroadcastGlobalVariablesCallback(0),
        callbacks.MetricAverageCallback(),
        callbacks.FlushCallback(),
    )


def on_batches(model: keras.Model, optimizer: hvd.DistributedOptimizer) -> None:
    model.compile(optimizer, loss="mse")
    for step in range(STEPS):
        model.train_on_batch(*batch(step))
    optimizer.flush()


def with_a_tape(model: keras.Model, optimizer: hvd.DistributedOptimizer) -> None:
    train(model, optimizer, range(STEPS))
    optimizer.flush(model)


LOOPS: dict[str, Callable[[keras.Model, hvd.DistributedOptimizer], None]] = {
    "fit": in_fit,
    "fit with callbacks": with_callbacks,
    "fit eagerly": functools.partial(in_fit, run_eagerly=True),
    "2 steps an execution": functools.partial(in_fit, steps_per_execution=2),
    "train_on_batch": on_batches,
    "tf.function": with_a_tape,
}


def outcome(
    loop: Callable[[keras.Model, hvd.DistributedOptimizer], None],
    model: keras.Model,
    optimizer: hvd.DistributedOptimizer,
) -> list[Array]:
    """The weights at the loop's end, the same on every rank."""
    syncs: list[int] = []
    optimizer.register_sync_hook(lambda record: syncs.append(record.step))
    loop(model, optimizer)
    assert syncs == SYNCS
    assert equal_on_all_ranks(model)
    return weights(model)


@functools.cache
def of_a_built_model(model: str, inner: str, *, broadcast: bool) -> list[Array]:
    """What an eager loop makes of the same model built before."""

    def loop(model: keras.Model, optimizer: hvd.DistributedOptimizer) -> None:
        train(model, optimizer, [0], graph=False)
        if broadcast:  # as the callback does, after a first batch that makes the variables
            hvd.broadcast_variables([*model.variables, *optimizer.variables], 0)
        train(model, optimizer, range(1, STEPS), graph=False)
        optimizer.flush(model)

    built = MODELS[model]()
    built.build((None, 3))
    return outcome(loop, built, wrapped(INNER[inner]()))


@RANKS
@pytest.mark.pairwise("loop", "names")
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("names", [("dense", "SGD"), ("normalised, dropping", "Adam")])
def test_it_trains_as_if_it_had_been_built(names: tuple[str, str], loop: str) -> None:
    model, inner = names
    late = MODELS[model]()
    ours = outcome(LOOPS[loop], late, wrapped(INNER[inner]()))
    expected = of_a_built_model(model, inner, broadcast=loop == "fit with callbacks")
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


# ---- other things that are made late -------------------------------------------------------


class MadeInBuild(layers.Layer):
    """A weight and a layer, both made when the input's shape is known."""

    def build(self, shape: Any) -> None:
        self.weight = self.add_weight((shape[-1], 4), "glorot_uniform")
        self.inside = layers.Dense(4, "tanh")

    def call(self, x: Any) -> Any:
        return self.inside(x @ self.weight)


class MadeInCall(keras.Model):
    """A weight made in the middle of the first call, between two late layers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight: Any = None
        self.first, self.last = layers.Dense(4), layers.Dense(2)

    def call(self, x: Any) -> Any:
        x = self.first(x)
        if self.weight is None:
            self.weight = self.add_weight((4, 4), "glorot_uniform")
        return self.last(keras.ops.tanh(x) @ self.weight)


def recurrent() -> keras.Model:
    return keras.Sequential([layers.Reshape((3, 1)), layers.LSTM(2), layers.Dense(2)])


def preprocessing() -> keras.Model:
    normalization = layers.Normalization()
    normalization.adapt(batch(0, rank=0)[0])
    doubled = layers.Lambda(lambda x: 2 * x)
    return keras.Sequential([normalization, layers.Rescaling(0.5), doubled, layers.Dense(2)])


def embedding() -> keras.Model:
    bins = layers.Discretization(bin_boundaries=[-0.5, 0.5])
    return keras.Sequential([bins, layers.Embedding(3, 4), layers.Flatten(), layers.Dense(2)])


def new_head() -> keras.Model:
    base = keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.BatchNormalization()])
    base.trainable = False
    return keras.Sequential([base, layers.Dense(2)])


def two_kinds() -> keras.optimizers.Optimizer:
    sgd, adam = INNER["SGD"](), INNER["Adam"]()
    return of_keras("MultiOptimizer")(of_keras("OptimizerMap")(adam, {".*/kernel": sgd}))


@RANKS
@pytest.mark.parametrize(
    ("make", "inner", "loop", "options"),
    [
        (recurrent, INNER["SGD"], "tf.function", {"buffers": "average"}),
        (preprocessing, INNER["Adam"], "train_on_batch", {"buffers": "reset"}),
        (embedding, INNER["SGD"], "fit", {"slow_momentum": 0.0}),
        (
            lambda: keras.Sequential([MadeInBuild(), layers.Dense(2)]),
            lambda: of_keras("ScheduleFreeAdamW")(),  # its z begins at the weights
            "fit",
            {},
        ),
        (MadeInCall, two_kinds, "2 steps an execution", {"compression": hvd.Compression.fp16}),
        (
            new_head,
            lambda: keras.optimizers.LossScaleOptimizer(INNER["Adam"]()),
            "tf.function",
            {"backward_passes_per_step": 2, "average_aggregated_gradients": True},
        ),
    ],
    ids=["recurrent", "preprocessing", "embedding", "in build", "in call", "new head"],
)
def test_whatever_is_made_late_trains_as_if_it_had_been_made_before(
    make: Callable[[], keras.Model],
    inner: Callable[[], keras.optimizers.Optimizer],
    loop: str,
    options: dict[str, Any],
) -> None:
    ends = []
    for late in (True, False):
        keras.utils.set_random_seed(0)
        model, optimizer = make(), wrapped(inner(), **options)
        if late:
            LOOPS[loop](model, optimizer)
        else:
            model(batch(0)[0])
            train(model, optimizer, range(STEPS), graph=False)
            optimizer.flush(model)
        assert optimizer.sync_stats.syncs == (1 if "backward_passes_per_step" in options else 3)
        assert equal_on_all_ranks(model)
        ends.append(weights(model))
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@RANKS
def test_words_and_mixed_precision_and_a_warm_up() -> None:
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        words = layers.TextVectorization(vocabulary=["slow", "fast"], output_sequence_length=3)
        model = keras.Sequential([words, layers.Embedding(4, 2), layers.Flatten(), dense()])
    finally:
        keras.mixed_precision.set_global_policy("float32")
    inner = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.05), initial_scale=8.0)
    optimizer, syncs = wrapped(inner, warmup_steps=2), []
    optimizer.register_sync_hook(lambda record: syncs.append(record.step))
    model.compile(optimizer, loss="mse")
    texts = tf.constant(["slow fast", "fast"] * STEPS)
    model.fit(texts, np.ones((2 * STEPS, 2)), batch_size=2, shuffle=False, verbose=0)
    assert syncs == [1, 2, 4, 5]
    assert equal_on_all_ranks(model.trainable_variables)


# ---- one start -----------------------------------------------------------------------------


@RANKS
@pytest.mark.parametrize("late", [0, 1])
def test_a_late_rank_and_one_with_a_built_model_agree_once(late: int) -> None:
    """Random first values differ between ranks: those that no one could broadcast are no fault."""
    model = keras.Sequential([dense(seed=hvd.rank())])
    optimizer = wrapped(keras.optimizers.SGD(0.0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        if hvd.rank() == late:
            in_fit(model, optimizer)
        else:
            model.build((None, 3))
            train(model, optimizer, range(STEPS), graph=False)
            optimizer.flush()
    assert everyone(len(caught)) == [0, 1 - late]
    assert equal_on_all_ranks(model)
    root = keras.Sequential([keras.Input((3,)), dense(seed=0)])
    assert same(weights(model), weights(root))


# ---- what cannot begin ---------------------------------------------------------------------


def from_its_arguments(optimizer: hvd.DistributedOptimizer) -> Callable[[Any], None]:
    weight: list[tf.Variable] = []

    @tf.function
    def step(x: Any) -> None:
        if not weight:
            weight.append(tf.Variable(2 * x))
        optimizer.apply_gradients([(tf.ones_like(x), weight[0])])

    return step


def around_the_function_that_steps(optimizer: hvd.DistributedOptimizer) -> Callable[[Any], None]:
    weight: list[tf.Variable] = []
    step = tf.function(lambda x: optimizer.apply_gradients([(tf.ones_like(x), weight[0])]))

    @tf.function
    def outer(x: Any) -> None:
        if not weight:
            weight.append(tf.Variable([2.0]))
        step(x)

    return outer


@RANKS
@pytest.mark.parametrize("make", [from_its_arguments, around_the_function_that_steps])
def test_variables_without_values_where_the_graph_is_made_are_refused_in_a_sentence(
    make: Callable[[hvd.DistributedOptimizer], Callable[[Any], None]],
) -> None:
    step = make(wrapped(keras.optimizers.SGD(0.1)))
    with pytest.raises((tf.errors.OpError, ValueError), match="call the model on one batch before"):
        step(tf.constant([1.0]))
