"""What is sent: compression, process sets, ranks out of data, two optimizers, one worker."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_models import equal_on_all_ranks, fit, mlp, number, step_with, train
from ranks import by_rank, everyone

import slowmo_hvd.tensorflow as hvd


@pytest.mark.ranks(2)
@pytest.mark.parametrize("lr", [1.0, 1e-9, 1e4])
def test_half_precision_on_the_wire_keeps_small_and_large_displacements(lr: float) -> None:
    weight = tf.Variable([0.0, 0.0], dtype=tf.float64)
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(lr),
        sync_period=2,
        slow_momentum=0.0,
        compression=hvd.Compression.fp16,
    )
    for _ in range(2):
        gradient = tf.constant(by_rank([1.0, 0.25], [3.0, 0.5]), tf.float64)
        optimizer.apply_gradients([(gradient, weight)])
    rate = float(np.float32(lr))
    assert np.allclose(weight.numpy(), [-4 * rate, -0.75 * rate], rtol=2e-3, atol=0)
    assert equal_on_all_ranks([weight])
    assert optimizer.sync_stats.last.bytes == 2 * 2 + 8 * 8  # halves, and eight exact figures


@pytest.mark.ranks(2)
def test_without_movement_compression_divides_by_nothing() -> None:
    weight = number(1.0)
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(1.0), sync_period=1, compression=hvd.Compression.fp16
    )
    step_with(optimizer, (0.0, weight))
    assert weight.numpy() == [1.0]


@pytest.mark.ranks(3)
def test_only_the_ranks_of_the_process_set_meet() -> None:
    pair = hvd.add_process_set([0, 2])
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(1.0), process_set=pair, sync_period=2, slow_momentum=0.0
    )
    for _ in range(2):
        step_with(optimizer, (float(hvd.rank()), weight))
    optimizer.flush()
    assert everyone(weight.numpy().tolist()) == [[-2.0], [-2.0], [-2.0]]  # means of 0, 4; and 2
    assert optimizer.sync_stats.syncs == (0 if hvd.rank() == 1 else 1)
    config = optimizer.get_config()
    assert config["process_set"] == [0, 2]
    again = hvd.DistributedOptimizer.from_config(config)
    assert again.process_set.process_set_id == pair.process_set_id
    with pytest.raises(ValueError, match=r"process set of ranks \[1, 2\], which is not known"):
        hvd.DistributedOptimizer.from_config(config | {"process_set": [1, 2]})
    hvd.remove_process_set(pair)


@pytest.mark.ranks(2, 3)
def test_a_rank_out_of_data_joins_and_the_average_is_the_others() -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(1.0), sync_period=2, slow_momentum=0.0
    )
    last = hvd.size() - 1
    for _ in range(3 if hvd.rank() == last else 4):
        step_with(optimizer, (float(hvd.rank()), weight))
    hvd.join()
    # After the first window all are at minus the sum of two means; then the last rank adds one
    # step and leaves, and the others' second window does not count it.
    first = -2 * last / 2
    others = np.mean(range(last))
    if hvd.rank() == last:
        assert weight.numpy() == [first - last]
        assert optimizer.sync_stats.syncs == 1
    else:
        assert weight.numpy() == np.float32([first - 2 * others])
        assert optimizer.sync_stats.last.workers == last


@pytest.mark.ranks(2)
def test_two_optimizers_with_other_periods_do_not_mix() -> None:
    one, other = number(0.0), number(0.0)
    optimizers = [
        hvd.DistributedOptimizer(keras.optimizers.SGD(1.0), sync_period=p, slow_momentum=0.0)
        for p in (2, 3)
    ]

    @tf.function
    def both(gradient: tf.Tensor) -> None:  # as a GAN does
        optimizers[0].apply_gradients([(gradient, one)])
        optimizers[1].apply_gradients([(2 * gradient, other)])

    for _ in range(6):
        both(tf.fill([1], float(hvd.rank())))
    assert (one.numpy(), other.numpy()) == ([-3.0], [-6.0])
    assert [optimizer.sync_stats.syncs for optimizer in optimizers] == [3, 2]


@pytest.mark.ranks(1)
def test_one_worker_alone_is_lookahead_and_sends_nothing() -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(1.0), sync_period=2, slow_lr=0.5, slow_momentum=0.0
    )
    for _ in range(2):
        step_with(optimizer, (1.0, weight))
    assert weight.numpy() == [-1.0]
    assert optimizer.sync_stats.bytes == 0
    model = mlp(0, keras.layers.BatchNormalization())
    model.compile(optimizer=hvd.DistributedOptimizer(keras.optimizers.Adam()), loss="mse")
    fit(model, range(3))


@pytest.mark.ranks(2)
def test_float64_and_float32_travel_side_by_side() -> None:
    double, single = tf.Variable([0.0], dtype=tf.float64), number(0.0)
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(1.0), sync_period=1, slow_momentum=0.0, buffers="average"
    )
    tiny = 1e-12 * (hvd.rank() + 1)
    step_with(optimizer, (1 + tiny, double), (float(hvd.rank()), single))
    assert double.numpy()[0] == pytest.approx(-1 - 1.5e-12, abs=1e-15)
    assert single.numpy() == [-0.5]


@pytest.mark.ranks(1)
def test_complex_variables_are_refused() -> None:
    variable = tf.Variable([1 + 2j], dtype=tf.complex64)
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.5))
    with pytest.raises(ValueError, match="is complex64, and only floating-point variables"):
        optimizer.apply_gradients([(tf.constant([1 + 1j], tf.complex64), variable)])


@pytest.mark.ranks(2)
def test_bfloat16_steps_too_small_to_show_add_up() -> None:
    weight = tf.Variable([256.0], dtype=tf.bfloat16)  # an ulp is 2
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(1.0), sync_period=1, slow_lr=0.25, slow_momentum=0.0
    )
    for _ in range(4):
        optimizer.apply_gradients([(tf.constant([2.0], tf.bfloat16), weight)])
    # Each local step shows in full; a quarter of it does not, but four quarters do.
    assert float(weight.numpy()[0]) == 254


@pytest.mark.ranks(2)
def test_the_record_of_a_sync_by_hand() -> None:
    weight = tf.Variable([0.0, 0.0])
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(0.5), sync_period=2, slow_momentum=0.0
    )
    seen: list[hvd.SyncRecord] = []
    handle = optimizer.register_sync_hook(seen.append)
    for lr in (0.5, 0.25):
        optimizer.learning_rate = lr
        optimizer.apply_gradients([(tf.constant(by_rank([4.0, 0.0], [0.0, 4.0])), weight)])
    # The workers moved by (-3, 0) and (0, -3): mean (-1.5, -1.5), each 1.5·√2 from it.
    record = optimizer.sync_stats.last
    assert seen == [record]
    assert (record.kind, record.step, record.window, record.workers) == (hvd.Sync.WINDOW, 2, 0, 2)
    assert record.learning_rates == (0.375,)
    assert record.bytes == 4 * 2 + 8 * 7  # two weights; the header, ‖d‖²
    assert record.displacement_norm == pytest.approx(1.5 * 2**0.5)
    assert record.drift == pytest.approx(1.5 * 2**0.5)
    assert 0 < record.seconds < 60
    handle.remove()
    optimizer.apply_gradients([(tf.ones([2]), weight)])
    optimizer.flush()
    assert len(seen) == 1
    assert optimizer.sync_stats.syncs == 2
    with pytest.raises(TypeError, match="hook must be callable, got 3"):
        optimizer.register_sync_hook(3)


@pytest.mark.ranks(2)
def test_a_hook_that_takes_itself_back_is_called_once_and_the_others_always() -> None:
    weight = tf.Variable([0.0])
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.5), sync_period=1)
    seen: list[str] = []

    def once(record: hvd.SyncRecord) -> None:
        seen.append("once")
        handle.remove()

    handle = optimizer.register_sync_hook(once)
    optimizer.register_sync_hook(lambda record: seen.append("always"))
    for _ in range(2):
        optimizer.apply_gradients([(tf.ones([1]), weight)])
    assert seen == ["once", "always", "always"]


@pytest.mark.ranks(2)
def test_a_hook_sees_the_model_after_the_sync() -> None:
    model = mlp()
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1), sync_period=2)
    at_syncs: list[np.ndarray] = []
    optimizer.register_sync_hook(
        lambda record: at_syncs.append(model.layers[0].kernel.value.numpy())
    )
    train(model, optimizer, range(6))
    ours, theirs = everyone(at_syncs)
    assert len(ours) == 3
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
