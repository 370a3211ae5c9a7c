"""The time of a Keras training step between syncs over the same step of the bare optimizer.

Run by ``horovodrun -np 2 python -m benchmarks.keras_step_overhead``. Two models of equal size take
turns in one process, so that both see the same machine; the median of the pairwise ratios counts.
"""

import statistics
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

import slowmo_hvd.tensorflow.keras as hvd

PAIRS = 40
STEPS = 5  # of fit, in each measurement
INNERS: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "SGD with momentum": lambda: keras.optimizers.SGD(1e-3, momentum=0.9),
    "AdamW": lambda: keras.optimizers.AdamW(1e-3),
}


def make_model() -> keras.Model:
    """A small convolutional network, as one trains on a CPU: 0.3M weights in 16 tensors."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            *(
                layer
                for width in (16, 32, 64, 128)
                for layer in (
                    layers.Conv2D(width, 3, padding="same", activation="relu"),
                    layers.MaxPooling2D(),
                )
            ),
            layers.Flatten(),
            layers.Dense(256, activation="relu"),
            layers.Dense(128, activation="relu"),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def by_fit(optimizer: keras.optimizers.Optimizer, data: tuple[np.ndarray, np.ndarray]):
    model = make_model()
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(32).repeat()
    return lambda: model.fit(dataset, steps_per_epoch=STEPS, shuffle=False, verbose=0)


def by_function(optimizer: keras.optimizers.Optimizer, data: tuple[np.ndarray, np.ndarray]):
    model = make_model()
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    images, labels = (tf.constant(array[:32]) for array in data)

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(images, training=True))
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    return lambda: [step() for _ in range(STEPS)]


def measure(make_inner: Callable[[], keras.optimizers.Optimizer], train: Callable) -> list[float]:
    """The ratios of neighbouring measurements, wrapped over bare; which goes first alternates."""
    generator = np.random.default_rng(0)
    data = (
        generator.standard_normal((32 * STEPS, 32, 32, 3)).astype("float32"),
        generator.integers(10, size=32 * STEPS),
    )
    # A period that never ends; `fit` ends with a flush, so that is left out of what is timed.
    wrapped = hvd.DistributedOptimizer(make_inner(), sync_period=10**9)
    wrapped.finalize_variable_values = lambda variables: None
    works = train(make_inner(), data), train(wrapped, data)
    ratios = []
    for turn in range(PAIRS + 4):
        order = works if turn % 2 else works[::-1]
        times = {work: seconds(work) for work in order}
        if turn >= 4:  # the first steps trace, allocate and agree on a start
            ratios.append(times[works[1]] / times[works[0]])
    return ratios


def main() -> None:
    hvd.init()
    keras.utils.set_random_seed(0)  # one start on all ranks
    tf.config.threading.set_intra_op_parallelism_threads(1)
    for way, train in (("fit", by_fit), ("tf.function", by_function)):
        for name, make_inner in INNERS.items():
            ratios = measure(make_inner, train)
            if hvd.rank() == 0:
                low, median, high = statistics.quantiles(ratios, n=4)
                print(
                    f"step between syncs over bare {name} in {way}, {hvd.size()} ranks: median "
                    f"ratio {median:.3f} (quartiles {low:.3f} to {high:.3f}, {PAIRS} pairs)",
                    flush=True,
                )


if __name__ == "__main__":
    main()
