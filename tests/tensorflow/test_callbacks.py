"""Horovod's Keras callbacks in ``model.fit``: broadcast, mean metrics, checkpoints, flush.

The models are one weight w, whose gradient is the target: y_pred = w·1 and the loss is y·y_pred.
"""

import inspect
from pathlib import Path
from typing import Any

import horovod.tensorflow.keras.callbacks as horovod_callbacks
import keras
import numpy as np
import pytest
import tensorflow as tf
from ranks import by_rank, everyone, same_error_everywhere

import slowmo_hvd.tensorflow.keras as hvd

callbacks = hvd.callbacks

#: How Keras runs the training step.
MODES: dict[str, dict[str, Any]] = {
    "graph": {},
    "eager": {"run_eagerly": True},
    "several": {"steps_per_execution": 2},
}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
#: Keras's own, where it saves variables under NumPy 2.
saves = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def product(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean(y_true * y_pred)


def model_of(
    start: float, optimizer: keras.optimizers.Optimizer | None = None, **mode: Any
) -> keras.Model:
    """One weight, built."""
    layer = keras.layers.Dense(
        1, use_bias=False, kernel_initializer=keras.initializers.Constant(start)
    )
    model = keras.Sequential([keras.Input((1,)), layer])
    compile_(model, optimizer, **mode)
    return model


def compile_(
    model: keras.Model, optimizer: keras.optimizers.Optimizer | None = None, **mode: Any
) -> None:
    optimizer = optimizer or keras.optimizers.SGD(1.0)
    model.compile(optimizer, product, **{"jit_compile": False, **mode})


def fit(model: keras.Model, gradients: list[float], *callbacks: Any, **kwargs: Any) -> Any:
    """One batch for each gradient, in this order."""
    x, y = np.ones((len(gradients), 1)), np.array(gradients, "float32")[:, None]
    options = {"batch_size": 1, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(x, y, callbacks=list(callbacks), **options)


def weight(model: keras.Model) -> float:
    return float(model.trainable_variables[0].numpy().item())


def slowmo(inner: keras.optimizers.Optimizer | None = None, **kwargs: Any) -> Any:
    return hvd.DistributedOptimizer(inner or keras.optimizers.SGD(1.0), **kwargs)


class Unbuilt(keras.Model):  # type: ignore[misc]
    """One weight, which there is not before the first batch."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(
            1, use_bias=False, kernel_initializer=keras.initializers.Constant(start)
        )

    def call(self, x: Any) -> Any:
        return self.dense(x)


@pytest.mark.ranks(1)
def test_each_of_horovods_callbacks_is_here_and_ours() -> None:
    theirs = [name for name, value in vars(horovod_callbacks).items() if isinstance(value, type)]
    assert len(theirs) == 5
    for name in theirs:
        ours = getattr(callbacks, name)
        assert ours.__module__.startswith("slowmo_hvd.tensorflow.keras.callbacks.")
        assert inspect.signature(ours).parameters.keys() == (
            inspect.signature(getattr(horovod_callbacks, name)).parameters.keys()
        )


# ---- BroadcastGlobalVariablesCallback --------------------------------------------------------


@pytest.mark.ranks(1, 2)
@modes
def test_every_rank_takes_all_its_steps_from_the_roots_weights(mode: dict[str, Any]) -> None:
    root = hvd.size() - 1
    model = model_of(by_rank(1.0, 10.0), **mode)
    ours = by_rank([2.0, 0.5], [3.0, 0.25])
    fit(model, ours, callbacks.BroadcastGlobalVariablesCallback(root))
    assert weight(model) == (1.0, 10.0)[root] - sum(ours)


@pytest.mark.ranks(1, 2)
def test_an_optimizer_that_only_the_root_has_restored_is_broadcast_too() -> None:
    model = model_of(0.0, keras.optimizers.SGD(by_rank(1.0, 0.5), momentum=0.5))
    optimizer = model.optimizer
    if hvd.rank() == 0:
        optimizer.build(model.trainable_variables)
        optimizer.momentums[0].assign([[8.0]])
        optimizer.iterations.assign(7)
    assert optimizer.built == (hvd.rank() == 0)
    fit(model, [1.0], callbacks.BroadcastGlobalVariablesCallback(0))
    assert weight(model) == 0.5 * 8 - 1.0
    assert int(optimizer.iterations) == 8
    assert float(optimizer.learning_rate) == 1


@pytest.mark.ranks(1, 2)
@modes
def test_a_model_without_variables_gets_them_after_its_first_batch(mode: dict[str, Any]) -> None:
    model = Unbuilt(by_rank(1.0, 10.0))
    compile_(model, **mode)
    fit(model, by_rank([2.0, 4.0], [3.0, 5.0]), callbacks.BroadcastGlobalVariablesCallback(0))
    # One batch, or as many as run at once, and then the root's weight.
    assert weight(model) == (-5.0 if "steps_per_execution" in mode else by_rank(-5.0, -6.0))


@pytest.mark.ranks(2)
def test_the_ranks_wait_for_one_whose_model_is_not_built() -> None:
    model = by_rank(model_of, Unbuilt)(by_rank(1.0, 10.0))
    compile_(model)
    fit(model, by_rank([2.0, 4.0], [3.0, 5.0]), callbacks.BroadcastGlobalVariablesCallback(0))
    assert weight(model) == by_rank(-5.0, -6.0)


@pytest.mark.ranks(1, 2)
def test_a_callback_broadcasts_once_and_a_new_one_again() -> None:
    model = model_of(float(hvd.rank()))
    callback = callbacks.BroadcastGlobalVariablesCallback(0)
    fit(model, [0.0], callback)
    assert weight(model) == 0
    model.trainable_variables[0].assign([[float(hvd.rank())]])
    fit(model, [0.0], callback, epochs=2)
    assert weight(model) == hvd.rank()
    fit(model, [0.0], callbacks.BroadcastGlobalVariablesCallback(0))
    assert weight(model) == 0


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("how", ["one", "list", "registered", "tf.Variable"])
def test_local_variables_remain_each_ranks_own(how: str) -> None:
    model = model_of(float(hvd.rank()), keras.optimizers.SGD(1.0 + hvd.rank()))
    ours = model.trainable_variables[0]
    given: Any = {"one": ours, "list": [ours], "tf.Variable": ours.value}.get(how)
    callback = callbacks.BroadcastGlobalVariablesCallback(0, local_variables=given)
    if how == "registered":
        callback.register_local_var(ours)
    fit(model, [0.0], callback)
    assert weight(model) == hvd.rank()
    assert float(model.optimizer.learning_rate) == 1


@pytest.mark.ranks(1)
def test_only_variables_can_be_local() -> None:
    with pytest.raises(ValueError, match=r"must be Keras variables or tf\.Variables, got 'kernel'"):
        callbacks.BroadcastGlobalVariablesCallback(0, local_variables=["kernel"])


@pytest.mark.ranks(2)
def test_unlike_optimizers_or_models_are_one_error_everywhere() -> None:
    def train(model: keras.Model) -> None:
        fit(model, [0.0], callbacks.BroadcastGlobalVariablesCallback(0))

    adam, sgd = keras.optimizers.Adam(), keras.optimizers.SGD()
    text = r"number of variables of model and optimizer: 5 on rank 0, 3 on rank 1; use the same"
    same_error_everywhere(ValueError, text, lambda: train(model_of(0.0, by_rank(adam, sgd))))

    wide = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2, use_bias=False)])
    compile_(wide)
    text = (
        r"variable 0 of model and optimizer: float32\[1, 1\] on rank 0, float32\[1, 2\] on rank 1"
    )
    same_error_everywhere(ValueError, text, lambda: train(by_rank(model_of(0.0), wide)))


@pytest.mark.ranks(1, 2)
def test_workers_keep_dropping_different_units() -> None:
    dropout = keras.layers.Dropout(0.5, seed=100 + hvd.rank())
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1), dropout])
    compile_(model)
    before = everyone(dropout.seed_generator.state.numpy().tolist())
    fit(model, [0.0], callbacks.BroadcastGlobalVariablesCallback(0))
    after = everyone(dropout.seed_generator.state.numpy().tolist())
    assert [state[0] for state in after] == [state[0] for state in before]
    kernels = everyone(model.layers[0].kernel.numpy().tolist())
    assert kernels == kernels[:1] * hvd.size()


@pytest.mark.ranks(1, 2)
@modes
def test_slowmo_starts_from_the_broadcast_weights(mode: dict[str, Any]) -> None:
    """With no warning that the ranks began apart, which this suite would make an error."""
    model = model_of(
        by_rank(1.0, 10.0), slowmo(sync_period=2, slow_momentum=0.0, buffers="maintain"), **mode
    )
    ours = by_rank([2.0, 0.5], [4.0, 1.5])
    fit(model, ours, callbacks.BroadcastGlobalVariablesCallback(0))
    assert weight(model) == 1.0 - np.mean([2.5, 5.5][: hvd.size()])


# ---- MetricAverageCallback -------------------------------------------------------------------


@pytest.mark.ranks(1, 2)
@modes
def test_the_metrics_of_an_epoch_are_the_mean_over_the_ranks(mode: dict[str, Any]) -> None:
    seen = []
    after = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(dict(logs)))
    model = model_of(2.0, keras.optimizers.SGD(0.0), **mode)
    x, y = np.ones((1, 1)), np.array([[by_rank(5.0, 9.0)]])
    history = fit(
        model,
        by_rank([1.0, 3.0], [2.0, 4.0]),
        callbacks.MetricAverageCallback(),
        after,
        validation_data=(x, y),
    ).history
    # 2·y: the mean of 4 and 6, and of 10 and 18.
    expected = {"loss": (4.0, 5.0)[hvd.size() - 1], "val_loss": (10.0, 14.0)[hvd.size() - 1]}
    assert seen == [expected]
    assert history == {name: [value] for name, value in expected.items()}
    assert all(type(value) is float for value in seen[0].values())


@pytest.mark.ranks(1, 2)
def test_numbers_of_all_kinds_are_averaged_and_the_rest_stays() -> None:
    rank = hvd.rank()
    array = np.ones(3)
    logs: dict[str, Any] = {
        "b": np.float32(rank),
        "tensor": tf.constant(2 * rank),
        "variable": keras.Variable(4.0 * rank),
        "int": rank,
        "a": float("nan") if rank else 1.0,
        "inf": float("inf"),
        "text": f"rank {rank}",
        "tf.string": tf.constant("7"),
        "digits": "7",
        "none": None,
        "array": array,
    }
    untouched = ("text", "tf.string", "digits", "none", "array")
    rest = {name: logs[name] for name in untouched}
    same = logs
    callbacks.MetricAverageCallback().on_epoch_end(0, logs)
    assert logs is same
    assert all(logs[name] is value for name, value in rest.items())
    mean = (hvd.size() - 1) / 2
    numbers = {name: value for name, value in logs.items() if name not in untouched}
    assert np.isnan(numbers.pop("a")) == (hvd.size() > 1)
    assert numbers == {
        "b": mean,
        "tensor": 2 * mean,
        "variable": 4 * mean,
        "int": mean,
        "inf": float("inf"),
    }
    callbacks.MetricAverageCallback().on_epoch_end(0, None)


@pytest.mark.ranks(2)
def test_metrics_that_one_rank_lacks_are_one_error_everywhere() -> None:
    def train() -> None:
        validation = by_rank((np.ones((1, 1)), np.ones((1, 1))), None)
        fit(model_of(0.0), [1.0], callbacks.MetricAverageCallback(), validation_data=validation)

    same_error_everywhere(
        ValueError, "other metrics: loss, val_loss on rank 0, loss on rank 1; give", train
    )
    same_error_everywhere(
        ValueError,
        "other metrics: none on rank 0, a on rank 1",
        lambda: callbacks.MetricAverageCallback().on_epoch_end(0, by_rank(None, {"a": 1.0})),
    )


# ---- FlushCallback ---------------------------------------------------------------------------


def together(value: float) -> bool:
    """Whether all ranks have this value. A collective."""
    return len(set(everyone(value))) == 1


class Watch(keras.callbacks.Callback):  # type: ignore[misc]
    """Notes the weight in validations and at the ends of epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, float]] = []

    def on_test_begin(self, logs: Any = None) -> None:
        self.seen.append(("test", weight(self.model)))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seen.append(("epoch", weight(self.model)))


@pytest.mark.ranks(1, 2)
@saves
@modes
def test_validation_and_later_callbacks_see_the_workers_average(
    mode: dict[str, Any], tmp_path: Path
) -> None:
    model = model_of(0.0, slowmo(sync_period=100, slow_momentum=0.0), **mode)
    watch = Watch()
    path = tmp_path / "{epoch}.weights.h5"
    save = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    history = fit(
        model,
        by_rank([1.0, 1.0], [1.0, 3.0]),
        callbacks.FlushCallback(),
        watch,
        save,
        epochs=2,
        validation_data=(np.ones((1, 1)), np.ones((1, 1))),
    ).history
    epoch = np.mean([2.0, 4.0][: hvd.size()])
    assert watch.seen == [(kind, -n * epoch) for n in (1, 2) for kind in ("test", "epoch")]
    assert history["val_loss"] == [-epoch, -2 * epoch]
    assert model.optimizer.sync_stats.syncs == 2
    restored = model_of(0.0, slowmo(sync_period=100, slow_momentum=0.0))
    restored.optimizer.build(restored.trainable_variables)
    restored.load_weights(str(path).format(epoch=1))
    assert weight(restored) == -epoch


@pytest.mark.ranks(1, 2)
def test_ranks_may_differ_in_whether_they_validate() -> None:
    normalization = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1), normalization])
    compile_(model, slowmo(sync_period=100))
    validation = (np.ones((1, 1)), np.ones((1, 1))) if hvd.rank() == 0 else None
    start = callbacks.BroadcastGlobalVariablesCallback(0)
    fit(model, [1.0], start, callbacks.FlushCallback(), epochs=2, validation_data=validation)
    assert model.optimizer.sync_stats.syncs == 2
    assert together(float(normalization.moving_mean.numpy().item()))


@pytest.mark.ranks(1, 2)
def test_one_rank_may_evaluate_alone() -> None:
    flush = callbacks.FlushCallback()
    model = model_of(0.0, slowmo(sync_period=100, slow_momentum=0.0))
    fit(model, by_rank([1.0], [3.0]), flush)
    after = -np.mean([1.0, 3.0][: hvd.size()])
    model.train_on_batch(np.ones((1, 1)), np.ones((1, 1)))  # inside a window again
    if hvd.rank() == 0:
        loss = model.evaluate(np.ones((1, 1)), np.ones((1, 1)), verbose=0, callbacks=[flush])
        assert loss == after - 1
    assert model.optimizer.sync_stats.syncs == 1
    model.optimizer.flush()


@pytest.mark.ranks(1)
def test_flush_callback_needs_slowmos_optimizer() -> None:
    with pytest.raises(TypeError, match="DistributedOptimizer, got SGD: wrap it, or leave"):
        fit(model_of(0.0), [1.0], callbacks.FlushCallback())


# ---- BestModelCheckpoint ---------------------------------------------------------------------


@pytest.mark.ranks(1)
@saves
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_the_best_model_is_saved_where_filepath_says(suffix: str, tmp_path: Path) -> None:
    weights_only = suffix == ".weights.h5"
    save = callbacks.BestModelCheckpoint(monitor="loss", save_weights_only=weights_only)
    assert save.filepath is None
    save.filepath = tmp_path / f"best{suffix}"
    model = model_of(0.0)
    fit(model, [1.0], save)  # the loss was 0, and w is -1 now
    fit(model, [1.0], save)  # the loss was -1: better
    model.trainable_variables[0].assign([[50.0]])
    fit(model, [1.0], save)  # worse
    if weights_only:
        restored = model_of(0.0)
        restored.load_weights(save.filepath)
    else:
        restored = keras.models.load_model(save.filepath, compile=False)
    assert weight(restored) == -2


@pytest.mark.ranks(1)
def test_a_missing_or_wrong_filepath_is_told_before_training() -> None:
    save = callbacks.BestModelCheckpoint(monitor="loss")
    with pytest.raises(ValueError, match=r"no filepath: set callback.filepath before fit\(\)"):
        fit(model_of(0.0), [1.0], save)
    with pytest.raises(ValueError, match=r"must end in \.keras or \.h5, got 'best'"):
        save.filepath = "best"
    save = callbacks.BestModelCheckpoint(save_weights_only=True)
    with pytest.raises(ValueError, match=r"must end in \.weights\.h5, got 'best\.h5'"):
        save.filepath = "best.h5"
