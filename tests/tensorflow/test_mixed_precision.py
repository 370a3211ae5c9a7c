"""float16 and bfloat16 policies, and gradients that overflow on one rank only."""

from collections.abc import Iterator

import horovod.tensorflow
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_models import batches, equal_on_all_ranks, fit, mlp, train, weights
from ranks import everyone

import slowmo_hvd.tensorflow as hvd

pytestmark = pytest.mark.ranks(2, 3)


@pytest.fixture
def policy(request: pytest.FixtureRequest) -> Iterator[str]:
    keras.mixed_precision.set_global_policy(request.param)
    yield request.param
    keras.mixed_precision.set_global_policy("float32")


half = pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
both = pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"], indirect=True)


@both
def test_a_policy_for_mixed_precision_trains_and_syncs(policy: str) -> None:
    model = mlp()
    optimizer = hvd.DistributedOptimizer(keras.optimizers.Adam(0.01), sync_period=3)
    model.compile(optimizer=optimizer, loss="mse")
    before = weights(model)
    fit(model, range(7))
    assert model.optimizer is optimizer
    assert optimizer.sync_stats.syncs == 3  # after 3 and 6, and at the end
    assert equal_on_all_ranks(model)
    assert all(w.dtype == np.float32 and np.isfinite(w).all() for w in weights(model))
    assert not np.allclose(before[0], weights(model)[0])


@half
def test_loss_scaling_comes_inside_and_not_around(policy: str) -> None:
    inner = keras.optimizers.SGD(0.1)
    optimizer = hvd.DistributedOptimizer(inner)
    model = mlp()
    model.compile(optimizer=optimizer, loss="mse")
    assert model.optimizer is optimizer
    assert isinstance(optimizer.inner_optimizer, keras.optimizers.LossScaleOptimizer)
    assert optimizer.inner_optimizer.inner_optimizer is inner
    model.compile(optimizer=optimizer, loss="mse")  # once more: not around that again
    assert optimizer.inner_optimizer.inner_optimizer is inner


def overflowing_fit(model: keras.Model, steps: int, overflows: dict[int, set[int]]) -> None:
    """Train on batches that are infinite in the steps that ``overflows`` has for this rank."""
    x, y = batches(range(steps))
    for step in overflows.get(hvd.rank(), ()):
        y[5 * step] = np.inf
    model.fit(x, y, batch_size=5, shuffle=False, verbose=0)


@half
@pytest.mark.parametrize("eagerly", [False, True])
def test_an_overflow_on_one_rank_alone_counts_there_too(policy: str, eagerly: bool) -> None:
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=8.0),
        sync_period=4,
    )
    model = mlp()
    model.compile(optimizer=optimizer, loss="mse", run_eagerly=eagerly)
    synced: list[bool] = []
    optimizer.register_sync_hook(lambda record: synced.append(record.step))
    overflowing_fit(model, 8, {1: {1, 2, 6}})
    assert synced == [4, 8]
    assert equal_on_all_ranks(model)
    skipped = 3 if hvd.rank() == 1 else 0
    assert int(optimizer.iterations.numpy()) == 8 - skipped
    scale = float(optimizer.inner_optimizer.dynamic_scale.numpy())
    assert scale == 8 / 2**skipped
    assert np.isfinite(weights(model)[0]).all()


@half
def test_a_rank_that_overflows_in_a_whole_window_takes_the_others_average(policy: str) -> None:
    model = mlp()
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(0.1), sync_period=2, slow_momentum=0.0
    )
    model.compile(optimizer=optimizer, loss="mse")
    start = weights(model)[0]
    positions: list[np.ndarray] = []
    fit_before_sync = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda step, logs: positions.append(weights(model)[0])
    )
    x, y = batches(range(2))
    if hvd.rank() == 1:
        y[:] = np.inf
    model.fit(x, y, batch_size=5, shuffle=False, verbose=0, callbacks=[fit_before_sync])
    first, last = everyone(positions)[0]
    assert not np.array_equal(first, start)
    assert np.array_equal(everyone(positions)[1][0], start)  # rank 1 took no step
    assert equal_on_all_ranks(model)
    assert not np.array_equal(last, start)


@half
def test_a_tape_scales_the_loss_by_the_inner_optimizer(policy: str) -> None:
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=16.0),
        sync_period=2,
    )
    model = mlp()
    assert float(optimizer.scale_loss(tf.constant(2.0))) == 32
    train(model, optimizer, range(4))
    assert equal_on_all_ranks(model)


@pytest.mark.parametrize("graph", [False, True])
def test_a_loss_scale_around_is_refused_before_any_rank_waits(graph: bool) -> None:
    optimizer = keras.optimizers.LossScaleOptimizer(
        hvd.DistributedOptimizer(keras.optimizers.SGD(0.1))
    )
    with pytest.raises(ValueError, match=r"put it inside, hvd\.DistributedOptimizer\(keras"):
        train(mlp(), optimizer, range(1), graph=graph)


def test_many_overflows_at_random_never_part_the_ranks() -> None:
    weight = tf.Variable([1.0])
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), initial_scale=1.0),
        sync_period=3,
    )
    step = tf.function(lambda g: optimizer.apply_gradients([(g, weight)]), autograph=False)
    random = np.random.default_rng(hvd.rank())
    for _ in range(100):
        step(tf.constant([np.inf if random.random() < 0.3 else random.standard_normal()]))
    assert optimizer.sync_stats.syncs == 33
    optimizer.flush()
    assert equal_on_all_ranks([weight])
    assert horovod.tensorflow.is_initialized()
