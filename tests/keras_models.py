"""Tiny Keras models and data for the TensorFlow tests: one model, and each rank its own data."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import horovod.tensorflow as hvd
import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from ranks import everyone

Array = npt.NDArray[Any]


def mlp(seed: int = 0, *more: keras.layers.Layer) -> keras.Model:
    """3 → 4 → 2, with ``more`` layers in between."""
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(
                4,
                activation="tanh",
                kernel_initializer=keras.initializers.RandomNormal(stddev=0.5, seed=seed),
            ),
            *more,
            keras.layers.Dense(
                2, kernel_initializer=keras.initializers.RandomNormal(stddev=0.5, seed=seed + 1)
            ),
        ]
    )


def model_of_two_dtypes() -> keras.Model:
    """3 → 4 in float32, 4 → 2 in bfloat16."""
    normal = keras.initializers.RandomNormal(stddev=0.5, seed=0)
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, "tanh", kernel_initializer=normal),
            keras.layers.Dense(2, dtype="bfloat16", kernel_initializer=normal),
        ]
    )


def batch(step: int, rank: int | None = None, size: int = 5) -> tuple[Array, Array]:
    """Inputs and targets that ``rank`` (this one) sees in step ``step``."""
    rank = hvd.rank() if rank is None else rank
    generator = np.random.default_rng(1000 * rank + step)
    x = generator.standard_normal((size, 3)).astype("float32")
    return x, generator.standard_normal((size, 2)).astype("float32")


def batches(steps: Iterable[int]) -> tuple[Array, Array]:
    """The batches of these steps one after the other, for ``fit(*batches(...), batch_size=5)``."""
    xs, ys = zip(*map(batch, steps), strict=True)
    return np.concatenate(xs), np.concatenate(ys)


def fit(model: keras.Model, steps: Iterable[int], **options: Any) -> Any:
    """``model.fit`` over these steps' batches, in order and in silence."""
    return model.fit(*batches(steps), batch_size=5, shuffle=False, verbose=0, **options)


def train(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    steps: Iterable[int],
    *,
    after_step: Callable[[], object] = lambda: None,
    graph: bool = True,
) -> None:
    """The loop that everybody writes with a GradientTape, over the batches of ``steps``."""

    def step_on(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((tf.cast(model(x, training=True), tf.float32) - y) ** 2)
            scaled = optimizer.scale_loss(loss)
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables, strict=True))

    run = tf.function(step_on) if graph else step_on
    for step in steps:
        run(*(tf.constant(array) for array in batch(step)))
        after_step()


def step_function(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> Any:
    """A training step as a graph, traced once: what it needs is made before."""
    variables = model.trainable_variables
    optimizer.build(variables)

    @tf.function(autograph=False)
    def step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            error = tf.cast(model(x, training=True), tf.float32) - y
            loss = optimizer.scale_loss(tf.reduce_mean(error**2))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    return step


def number(value: float) -> tf.Variable:
    """A model of one weight."""
    return tf.Variable([value])


def step_with(optimizer: keras.optimizers.Optimizer, *pairs: tuple[float, tf.Variable]) -> None:
    """One eager step with these gradients, each for its variable."""
    optimizer.apply_gradients(
        [
            (tf.fill(variable.shape, tf.constant(g, variable.dtype)), variable)
            for g, variable in pairs
        ]
    )


def weights(of: keras.Model | Sequence[Any]) -> list[Array]:
    """Copies of a model's weights, moving statistics included, or of variables."""
    variables = of.variables if isinstance(of, keras.Model) else of
    return [np.array(variable.numpy()) for variable in variables]


def same(ours: Sequence[Array], theirs: Sequence[Array]) -> bool:
    """Whether two lists of arrays are equal bit for bit."""
    return len(ours) == len(theirs) and all(
        a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(ours, theirs, strict=True)
    )


def equal_on_all_ranks(of: keras.Model | Sequence[Any]) -> bool:
    """Whether all ranks hold these weights, bit for bit. A collective."""
    copies = everyone(weights(of))
    return all(same(copies[0], copy) for copy in copies)


def slow_state(optimizer: Any, kind: str) -> list[Array]:
    """The "anchor" or slow "momentum" of each variable, in the order of the optimizer's groups."""
    saved = optimizer._training.to_save()
    return [value.numpy() for name, value in saved if name.startswith(f"{kind}.")]
