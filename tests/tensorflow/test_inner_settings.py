"""What is set on the inner optimizer works as it does without SlowMo, in each local step."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_models import equal_on_all_ranks, fit, mlp, number, same, step_with, train, weights
from keras_optimizers import of_keras
from ranks import by_rank

import slowmo_hvd.tensorflow as hvd

SETTINGS: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "clipnorm": lambda: keras.optimizers.SGD(0.1, clipnorm=0.1),
    "clipvalue": lambda: keras.optimizers.SGD(0.1, clipvalue=0.01),
    "global_clipnorm": lambda: keras.optimizers.Adam(0.1, global_clipnorm=0.1),
    "weight decay": lambda: keras.optimizers.AdamW(0.1, weight_decay=0.3),
    "average of weights": lambda: keras.optimizers.SGD(
        0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2
    ),
    "accumulation": lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=3),
    "static loss scale": lambda: keras.optimizers.SGD(0.1, loss_scale_factor=4.0),
    "schedule": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.PiecewiseConstantDecay([2, 4], [0.1, 0.05, 0.2])
    ),
}


@pytest.mark.ranks(2)
@pytest.mark.parametrize("setting", SETTINGS)
def test_local_steps_are_the_bare_optimizers(setting: str) -> None:
    bare_model, model = mlp(), mlp()
    bare = SETTINGS[setting]()
    ours = hvd.DistributedOptimizer(SETTINGS[setting](), sync_period=100)
    train(bare_model, bare, range(7))
    train(model, ours, range(7))
    assert same(weights(model), weights(bare_model))
    assert not equal_on_all_ranks(model)


@pytest.mark.ranks(2)
def test_weight_decay_can_leave_variables_out() -> None:
    kernel, bias = number(1.0), number(1.0)
    optimizer = hvd.DistributedOptimizer(keras.optimizers.AdamW(0.1, weight_decay=0.5))
    optimizer.exclude_from_weight_decay(var_list=[bias])
    step_with(optimizer, (0.0, kernel), (0.0, bias))
    assert kernel.numpy() == np.float32(0.95)
    assert bias.numpy() == 1


@pytest.mark.ranks(2)
@pytest.mark.parametrize("graph", [False, True])
def test_with_gradients_that_add_up_the_steps_that_move_weights_count(graph: bool) -> None:
    model = mlp()
    inner = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    optimizer = hvd.DistributedOptimizer(inner, sync_period=2)
    synced: list[int] = []
    optimizer.register_sync_hook(lambda record: synced.append(record.step))
    equal: list[bool] = []
    train(
        model,
        optimizer,
        range(8),
        graph=graph,
        after_step=lambda: equal.append(equal_on_all_ranks(model)),
    )
    assert synced == [2, 4]
    assert [index + 1 for index, same in enumerate(equal) if same] == [1, 4, 5, 8]


@pytest.mark.ranks(2)
@pytest.mark.parametrize("average", [False, True])
def test_backward_passes_add_up_as_in_horovod(average: bool) -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(1.0),
        backward_passes_per_step=2,
        average_aggregated_gradients=average,
        sync_period=1,
        slow_momentum=0.0,
    )
    gradients = by_rank((1.0, 2.0), (3.0, 4.0))
    for gradient in gradients:
        step_with(optimizer, (gradient, weight))
    assert weight.numpy() == [-2.5 if average else -5.0]


@pytest.mark.ranks(2)
def test_sparse_gradients_stay_local_and_the_table_is_averaged() -> None:
    for dense in (False, True):
        table = tf.Variable(tf.zeros([4, 2]))
        optimizer = hvd.DistributedOptimizer(
            keras.optimizers.SGD(1.0), sync_period=1, slow_momentum=0.0, sparse_as_dense=dense
        )
        gradient = tf.IndexedSlices(tf.ones([1, 2]), tf.constant([hvd.rank()]), (4, 2))
        optimizer.apply_gradients([(gradient, table)])
        assert table.numpy().tolist() == [[-0.5, -0.5], [-0.5, -0.5], [0, 0], [0, 0]]


@pytest.mark.ranks(2)
def test_an_embedding_trains_in_fit() -> None:
    model = keras.Sequential(
        [keras.Input((3,), dtype="int32"), keras.layers.Embedding(8, 2), keras.layers.Flatten()]
    )
    model.compile(
        optimizer=hvd.DistributedOptimizer(keras.optimizers.Adam(0.1), sync_period=2), loss="mse"
    )
    hvd.broadcast_variables(model.variables, root_rank=0)
    x = np.random.default_rng(hvd.rank()).integers(8, size=(12, 3))
    model.fit(x, np.ones((12, 6)), batch_size=4, verbose=0)
    assert equal_on_all_ranks(model)


@pytest.mark.ranks(2)
def test_a_missing_gradient_leaves_the_variable_in_the_average() -> None:
    used, unused = number(1.0), tf.Variable([float(hvd.rank())])
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(1.0), sync_period=2, slow_momentum=0.0
    )
    with pytest.warns(UserWarning, match="Gradients do not exist|started from other weights"):
        optimizer.apply_gradients([(tf.ones([1]), used), (None, unused)])
    unused.assign([2.0 * hvd.rank()])  # by other means than the optimizer's
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply_gradients([(tf.ones([1]), used), (None, unused)])
    assert unused.numpy() == [1.0]


@pytest.mark.ranks(2)
def test_the_learning_rate_and_other_settings_are_the_inner_optimizers() -> None:
    inner = keras.optimizers.SGD(0.5, momentum=0.9)
    optimizer = hvd.DistributedOptimizer(inner)
    optimizer.learning_rate = 0.25
    assert float(inner.learning_rate) == float(optimizer.learning_rate) == 0.25
    assert optimizer.momentum == 0.9
    with pytest.raises(AttributeError, match="has no attribute '_nothing'"):
        optimizer._nothing  # noqa: B018
    model = mlp()
    model.compile(optimizer=optimizer, loss="mse")
    fit(model, range(3))
    assert int(optimizer.iterations) == int(inner.iterations) == 3


# ---- settings written to the outer optimizer -----------------------------------------------


@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    ("inner", "name", "values"),
    [
        (lambda: keras.optimizers.SGD(0.1, momentum=0.9), "momentum", (0.5, 0.0)),
        (lambda: keras.optimizers.SGD(0.1, momentum=0.9), "nesterov", (True, False)),
        (lambda: keras.optimizers.Adam(0.1), "beta_1", (0.5, 0.1)),
        (lambda: keras.optimizers.AdamW(0.1), "weight_decay", (0.3, 0.0)),
        (lambda: keras.optimizers.SGD(0.1, clipnorm=1.0), "clipnorm", (0.1, None)),
        (lambda: keras.optimizers.SGD(0.1), "loss_scale_factor", (4.0, 2.0)),
        (lambda: keras.optimizers.SGD(0.1), "use_ema", (True,)),
        (lambda: keras.optimizers.SGD(0.1), "gradient_accumulation_steps", (2,)),
    ],
)
def test_a_setting_that_is_written_reads_and_works_as_in_bare_keras(
    inner: Callable[[], keras.optimizers.Optimizer], name: str, values: tuple[Any, ...]
) -> None:
    """Before the first step, and in the middle of an eager loop."""
    ends = []
    for wrap in (lambda bare: bare, lambda bare: hvd.DistributedOptimizer(bare, sync_period=100)):
        bare, model = inner(), mlp()
        optimizer = wrap(bare)
        for start, value in enumerate(values):
            setattr(optimizer, name, value)
            assert getattr(optimizer, name) == getattr(bare, name) == value
            train(model, optimizer, range(2 * start, 2 * start + 2), graph=False)
        bare.finalize_variable_values(model.trainable_variables)
        ends.append(weights(model))
    assert same(*ends)


@pytest.mark.ranks(2)
def test_a_setting_reaches_the_optimizer_inside_a_loss_scale_optimizer() -> None:
    inner = keras.optimizers.SGD(0.5, momentum=0.9)
    scaled = keras.optimizers.LossScaleOptimizer(inner)
    optimizer = hvd.DistributedOptimizer(scaled)
    optimizer.momentum, optimizer.clipnorm, optimizer.dynamic_growth_steps = 0.25, 2.0, 7
    assert (inner.momentum, inner.clipnorm, scaled.dynamic_growth_steps) == (0.25, 2.0, 7)
    assert (optimizer.momentum, optimizer.clipnorm, optimizer.dynamic_growth_steps) == (0.25, 2, 7)
    optimizer.seen = 3  # no setting of any optimizer's
    assert optimizer.seen == 3
    assert not hasattr(inner, "seen")


@pytest.mark.ranks(2)
@pytest.mark.parametrize("name", ["momentum", "clipnorm", "learning_rate"])
def test_a_setting_of_several_optimizers_is_refused(name: str) -> None:
    sgd, adam = keras.optimizers.SGD(0.5, momentum=0.9), keras.optimizers.Adam(0.1)
    mapping = of_keras("OptimizerMap")(adam, {".*/kernel": sgd})
    optimizer = hvd.DistributedOptimizer(of_keras("MultiOptimizer")(mapping))
    with pytest.raises(AttributeError, match=r"(?i)set (it|the learning rate) on .*optimizers"):
        setattr(optimizer, name, 0.25)
    assert sgd.momentum == 0.9


@pytest.mark.ranks(2)
def test_what_the_windows_count_on_cannot_change() -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(0.5, gradient_accumulation_steps=2), sync_period=2
    )
    with pytest.raises(AttributeError, match="sync_period cannot change once the optimizer is"):
        optimizer.sync_period = 4
    with pytest.raises(AttributeError, match="backward_passes_per_step cannot change from 1 to 2"):
        optimizer.backward_passes_per_step = 2
    optimizer.gradient_accumulation_steps = 3
    step_with(optimizer, (1.0, weight))
    optimizer.gradient_accumulation_steps = 3
    with pytest.raises(AttributeError, match="gradient_accumulation_steps cannot change from 3 to"):
        optimizer.gradient_accumulation_steps = 2
    for _ in range(5):
        step_with(optimizer, (1.0, weight))
    assert optimizer.sync_stats.last.step == 2
    assert weight.numpy() == [-1.0]
