"""Averages weighted by samples, for batches that are not equally large on all ranks: Keras."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from ranks import by_rank

import slowmo_hvd.tensorflow as hvd

INPUTS = np.random.default_rng(1).normal(size=(10, 3)).astype(np.float32)
TARGETS = INPUTS.sum(1, keepdims=True)


def mine() -> tuple[np.ndarray, np.ndarray]:
    """Seven of ten examples on rank 0, three on rank 1."""
    part = by_rank(slice(0, 7), slice(7, 10))
    return INPUTS[part], TARGETS[part]


class Counting(keras.Model):
    """A linear model that counts its samples in ``fit``."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = keras.layers.Dense(1, kernel_initializer="ones")

    def call(self, inputs: Any) -> Any:
        return self.layer(inputs)

    def train_step(self, data: Any) -> Any:
        if isinstance(self.optimizer, hvd.DistributedOptimizer):
            self.optimizer.contribute(tf.shape(data[0])[0])
        return super().train_step(data)


def made(inner: bool, **settings: Any) -> Counting:
    model = Counting()
    model(INPUTS[:1])
    sgd = keras.optimizers.SGD(0.1)
    optimizer = sgd if inner else hvd.DistributedOptimizer(sgd, **settings)
    model.compile(optimizer=optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    return model


@pytest.mark.ranks(2)
@pytest.mark.parametrize("eagerly", [False, True])
@pytest.mark.parametrize("pace", [{}, {"warmup_steps": 9}])
def test_uneven_batches_averaged_in_every_step_are_one_large_batch_in_fit(
    pace: dict[str, Any], eagerly: bool
) -> None:
    alone = made(True)
    ours = made(False, **{"sync_period": 1, "slow_momentum": 0.0, **pace})
    ours.run_eagerly = eagerly
    alone.fit(INPUTS, TARGETS, batch_size=10, epochs=4, shuffle=False, verbose=0)
    ours.fit(*mine(), batch_size=7, epochs=4, shuffle=False, verbose=0)
    np.testing.assert_allclose(ours.get_weights()[0], alone.get_weights()[0], rtol=1e-5)
    assert ours.optimizer.sync_stats.last.samples == 10


@pytest.mark.ranks(2)
@pytest.mark.parametrize("in_graph", [False, True])
def test_every_rank_hears_of_one_that_does_not_count(in_graph: bool) -> None:
    weight = keras.Variable([1.0])
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1), sync_period=2)
    optimizer.build([weight])

    def step() -> None:
        if hvd.rank() == 0:
            optimizer.contribute(3)
        optimizer.apply([weight.value], [weight])

    take = tf.function(step, autograph=False) if in_graph else step
    take()
    with pytest.raises(Exception, match="rank 1 counted no samples in the window that ends after"):
        take()
    optimizer.contribute(by_rank(0, 3))  # mended before the next step, which syncs
    optimizer.apply([weight.value], [weight])
    assert optimizer.sync_stats.last.samples == 9


def test_what_is_no_count_is_refused() -> None:
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1))
    with pytest.raises(ValueError, match=r"call optimizer\.build"):
        optimizer.contribute(3)
    optimizer.build([keras.Variable([1.0])])
    for wrong in (2.5, True, tf.constant(2.5), tf.constant([2])):
        with pytest.raises(TypeError, match="samples must be an int >= 0"):
            optimizer.contribute(wrong)
    for wrong in (-1, tf.constant(-1)):
        with pytest.raises(ValueError, match="samples must be an int >= 0, got -1"):
            optimizer.contribute(wrong)
