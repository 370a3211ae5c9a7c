"""``SyncBatchNormalization`` against Keras's own layer on the batches of all ranks, joined; and the
moving statistics of layers that normalize by themselves, averaged.
"""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from ranks import by_rank, everyone

import slowmo_hvd.tensorflow as hvd
from slowmo_hvd.tensorflow.means import average
from slowmo_hvd.tensorflow.moving_statistics import statistics_of
from slowmo_hvd.tensorflow.transport import Transport

pytestmark = pytest.mark.ranks(1, 2)


def batch(rank: int, *shape: int) -> np.ndarray:
    """A rank's batch; every rank can make every other's."""
    random = np.random.default_rng(rank)
    return random.normal(rank, 1.0 + rank, shape).astype("float32")


def layer_of(cls: Any, shape: tuple[int, ...], **options: Any) -> keras.layers.Layer:
    """A built layer with weights that are not those it starts with."""
    layer = cls(momentum=0.75, **options)
    layer.build((None, *shape[1:]))
    layer.gamma.assign(np.linspace(0.5, 1.5, layer.gamma.shape[0]))
    layer.beta.assign(np.linspace(-1, 1, layer.beta.shape[0]))
    return layer


def run(layer: Any, x: Any, upstream: Any, *, graph: bool, mask: Any = None) -> dict[str, Any]:
    """Outputs, gradients of the sum of outputs times ``upstream``, and moving statistics."""

    def step(x: Any, mask: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True, mask=mask)
            loss = tf.reduce_sum(tf.cast(y, tf.float32) * upstream)
        return y, tape.gradient(loss, [x, *layer.trainable_variables])

    # As an argument: TensorFlow would work out what a constant mask makes of the graph, and leave
    # operations out of one rank's.
    mask = None if mask is None else tf.constant(mask)
    y, (dx, dgamma, dbeta) = (tf.function(step) if graph else step)(tf.constant(x), mask)
    figures = {"y": y, "dx": dx, "dgamma": dgamma, "dbeta": dbeta}
    statistics = {"mean": layer.moving_mean, "variance": layer.moving_variance}
    return {name: np.asarray(value) for name, value in {**figures, **statistics}.items()}


def compare(
    shapes: list[tuple[int, ...]],
    masks: list[np.ndarray] | None = None,
    *,
    graph: bool = True,
    **options: Any,
) -> None:
    """Hold this rank's part against a layer that sees what all ranks see."""
    shapes = shapes[: hvd.size()]
    batches = [batch(rank, *shape) for rank, shape in enumerate(shapes)]
    upstreams = [batch(10 + rank, *shape) for rank, shape in enumerate(shapes)]
    rank = hvd.rank()
    ours = run(
        layer_of(hvd.SyncBatchNormalization, shapes[rank], **options),
        batches[rank],
        upstreams[rank],
        graph=graph,
        mask=masks[rank] if masks else None,
    )
    joined = run(
        layer_of(keras.layers.BatchNormalization, shapes[rank], **options),
        np.concatenate(batches),
        np.concatenate(upstreams),
        graph=graph,
        mask=np.concatenate(masks[: hvd.size()]) if masks else None,
    )
    begin = sum(shape[0] for shape in shapes[:rank])
    part = slice(begin, begin + shapes[rank][0])
    for name in ("y", "dx"):
        np.testing.assert_allclose(ours[name], joined[name][part], 1e-5, 1e-5)
    # A worker has its own share of the weights' gradients; the optimizer sums or averages.
    for name in ("dgamma", "dbeta"):
        total = np.sum(everyone(ours[name]), axis=0)
        np.testing.assert_allclose(total, joined[name], 1e-5, 1e-5)
    for name in ("mean", "variance"):
        np.testing.assert_allclose(ours[name], joined[name], 1e-6, 1e-6)


@pytest.mark.parametrize("graph", [False, True])
def test_it_normalizes_the_joined_batch(graph: bool) -> None:
    compare([(4, 3), (4, 3)], graph=graph)


@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 1), -1), ((2, 5, 4, 3), -1), ((2, 3, 4, 5), 1)], ids=str
)
def test_shapes_and_axes(shape: tuple[int, ...], axis: int) -> None:
    compare([shape, shape], axis=axis)


def test_unequal_batches_count_by_their_elements() -> None:
    compare([(5, 3), (2, 3)])


@pytest.mark.parametrize("axis", [-1, 1])
def test_masked_elements_do_not_count(axis: int) -> None:
    masks = [np.array([[1, 1, 0], [1, 0, 0]], bool), np.array([[1, 1, 1], [0, 0, 0]], bool)]
    compare([(2, 3, 4), (2, 3, 4)], masks, axis=axis)


def test_a_rank_whose_elements_are_all_masked_takes_the_others_moments() -> None:
    masks = [np.array([[1, 1, 0], [1, 0, 0]], bool), np.zeros((2, 3), bool)]
    compare([(2, 3, 4), (2, 3, 4)], masks)


def test_a_small_variance_around_a_large_mean_survives() -> None:
    """In float32 E[x²] - E[x]² would leave nothing of it: 10⁴ squared has 8 digits."""
    layer = hvd.SyncBatchNormalization(momentum=0.0)
    x = [1e4 + batch(rank, 64, 3) for rank in range(hvd.size())]
    layer(x[hvd.rank()], training=True)
    joined = np.concatenate(x).astype("float64")
    np.testing.assert_allclose(layer.moving_mean.numpy(), joined.mean(0), rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance.numpy(), joined.var(0), rtol=1e-3)


def test_without_training_nothing_is_sent_and_the_moving_statistics_are_used() -> None:
    layer = layer_of(hvd.SyncBatchNormalization, (4, 3))
    frozen = layer_of(hvd.SyncBatchNormalization, (4, 3), trainable=False)
    plain = layer_of(keras.layers.BatchNormalization, (4, 3))
    x = batch(0, 4, 3)
    if hvd.rank() == 0:  # the other rank would hang a collective
        expected = plain(x, training=False)
        np.testing.assert_array_equal(layer(x, training=False), expected)
        np.testing.assert_array_equal(frozen(x, training=True), expected)


def test_half_precision_is_normalized_in_float32() -> None:
    layer = layer_of(hvd.SyncBatchNormalization, (4, 3), dtype="mixed_float16")
    plain = layer_of(keras.layers.BatchNormalization, (4, 3), dtype="mixed_float16")
    x = [batch(rank, 4, 3).astype("float16") for rank in range(hvd.size())]
    y = layer(x[hvd.rank()], training=True)
    assert y.dtype == "float16"
    joined = np.asarray(plain(np.concatenate(x), training=True))
    part = slice(4 * hvd.rank(), 4 * hvd.rank() + 4)
    np.testing.assert_allclose(np.asarray(y), joined[part], 2e-3, 2e-3)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's
@pytest.mark.parametrize(
    "mode",
    [{}, {"run_eagerly": True}, {"steps_per_execution": 2}],
    ids=["graph", "eager", "several"],
)
def test_a_model_with_two_of_them_trains_and_is_saved(mode: dict[str, Any], tmp_path: Path) -> None:
    for _ in range(hvd.rank()):  # so that Keras names the layers otherwise
        keras.layers.Dense(1), hvd.SyncBatchNormalization(), keras.Sequential()
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(2), hvd.SyncBatchNormalization()]
    more = [keras.layers.Dense(1), hvd.SyncBatchNormalization(scale=False)]
    model = keras.Sequential([keras.Input((2,)), *layers, *more])
    # jit_compile is left to Keras, which must see that Horovod is not for XLA.
    model.compile(keras.optimizers.SGD(0.0), "mse", **mode)
    assert not model.jit_compile
    x = batch(hvd.rank(), 8, 2)
    model.fit(x, x[:, :1], batch_size=4, verbose=0)
    names = everyone(layers[1].name)
    assert len(set(names)) == hvd.size()
    statistics = [value.tolist() for value in model.get_weights()]
    assert everyone(statistics) == [statistics] * hvd.size()
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path, compile=False)
    assert type(loaded.layers[1]) is hvd.SyncBatchNormalization
    assert [value.tolist() for value in loaded.get_weights()] == statistics


@pytest.mark.parametrize("fused", [True, None])
def test_a_fused_one_is_refused_in_horovods_words(fused: Any) -> None:
    with pytest.raises(ValueError, match=r"SyncBatchNormalization does not support fused=True"):
        hvd.SyncBatchNormalization(fused=fused)
    hvd.SyncBatchNormalization(fused=False)
    assert hvd.SyncBatchNormalization(name="mine").name == "mine"


def test_by_hand_two_workers_of_one_element_each() -> None:
    """x = 0 and 2·s make y = ±1, whatever s is: the loss has no gradient by s on any rank."""
    if hvd.size() != 2:
        return
    layer = hvd.SyncBatchNormalization(epsilon=0.0, center=False, scale=False)
    layer.build((None, 1))
    scale = tf.Variable(3.0)
    with tf.GradientTape() as tape:
        y = layer(tf.reshape(scale, [1, 1]) * by_rank(0.0, 2.0), training=True)
        loss = tf.reduce_sum(y) * by_rank(5.0, 7.0)
    assert np.asarray(y).item() == pytest.approx(by_rank(-1, 1))
    assert float(tape.gradient(loss, scale)) == pytest.approx(0, abs=1e-6)
    assert layer.moving_mean.numpy() == pytest.approx(0.01 * 3)
    assert layer.moving_variance.numpy() == pytest.approx(0.99 + 0.01 * 9)


# ---- the statistics of layers that do not send -----------------------------------------------


def averaged(model: keras.Model) -> int:
    """Average the model's statistics; return the bytes handed to allreduce."""
    transport = Transport(hvd.global_process_set)
    average(statistics_of(model), transport, "test", bucket_bytes=64)
    return transport.sent


def test_moving_statistics_become_their_mean_and_all_else_stays() -> None:
    plain = keras.layers.BatchNormalization()
    half = keras.layers.BatchNormalization(dtype="float16")
    frozen = keras.layers.Dense(1, trainable=False)
    inner = keras.Sequential([keras.Input((1,)), plain, half, keras.layers.Dropout(0.5)])
    x = keras.Input((1,))
    model = keras.Model(x, frozen(inner(plain(x))))  # plain is in it twice
    counter = model.add_weight(dtype="int64", trainable=False, initializer="zeros")
    variables = {variable.path: variable for variable in (*model.variables, counter)}
    for variable in variables.values():
        variable.assign(tf.fill(variable.shape, tf.cast(2 + 4 * hvd.rank(), variable.dtype)))
    sent = averaged(model)
    own, mean = 2 + 4 * hvd.rank(), 2 * hvd.size()
    for path, variable in variables.items():
        assert set(variable.numpy().flat) == {mean if "moving" in path else own}, path
    # A mean and a variance in float64 for each layer, and a count for each of the four.
    assert sent == (0 if hvd.size() == 1 else 8 * (4 + 4))


def test_statistics_that_agree_keep_every_bit() -> None:
    layer = keras.layers.BatchNormalization()
    layer.build((None, 1000))
    values = np.random.default_rng(0).normal(0, 1e10, 1000).astype("float32")
    layer.moving_mean.assign(values)
    averaged(keras.Sequential([layer]))
    assert (layer.moving_mean.numpy() == values).all()


def test_a_model_without_statistics_sends_nothing() -> None:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1), keras.layers.Dropout(0.5)])
    if hvd.rank() == 0:  # the other rank would hang a collective
        assert averaged(model) == 0
