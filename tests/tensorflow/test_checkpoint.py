"""``model.save`` and ``load_model``: a run that was resumed equals the one that was not."""

import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras_models import batch, equal_on_all_ranks, fit, mlp, same, train, weights
from ranks import by_rank, everyone, same_error_everywhere

import slowmo_hvd.tensorflow as hvd
import slowmo_hvd.tensorflow.keras as hvd_keras

pytestmark = pytest.mark.ranks(2)

INNER: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "SGD": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "Adam": lambda: keras.optimizers.Adam(0.02, amsgrad=True),
    "AdamW, EMA, schedule": lambda: keras.optimizers.AdamW(
        keras.optimizers.schedules.ExponentialDecay(0.02, 3, 0.9), use_ema=True
    ),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.02), initial_scale=4.0, dynamic_growth_steps=3
    ),
    "accumulating": lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
}


def compiled(make_inner: Callable[[], keras.optimizers.Optimizer], **slowmo: Any) -> keras.Model:
    model = mlp(0, keras.layers.BatchNormalization())
    optimizer = hvd.DistributedOptimizer(make_inner(), **{"sync_period": 3, **slowmo})
    model.compile(optimizer=optimizer, loss="mse")
    return model


# Inside the second window and, once, at its start; every inner optimizer and every strategy.
PLANS = [
    ("SGD", "reset", 4),
    ("SGD", "average", 3),
    ("Adam", "reset", 5),
    ("AdamW, EMA, schedule", "reset", 4),
    ("AdamW, EMA, schedule", "average", 5),
    ("loss scale", "maintain", 4),
    ("accumulating", "maintain", 5),
]


@pytest.mark.parametrize(("name", "buffers", "steps"), PLANS)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    name: str, buffers: str, steps: int, tmp_path: Path
) -> None:
    straight, broken = (compiled(INNER[name], buffers=buffers) for _ in range(2))
    train(straight, straight.optimizer, range(8))
    train(broken, broken.optimizer, range(steps))
    broken.save(tmp_path / f"{hvd.rank()}.keras")
    resumed = keras.saving.load_model(tmp_path / f"{hvd.rank()}.keras", safe_mode=True)
    assert same(weights(resumed.optimizer.variables), weights(broken.optimizer.variables))
    train(resumed, resumed.optimizer, range(steps, 8))
    assert same(weights(resumed), weights(straight))
    assert same(weights(resumed.optimizer.variables), weights(straight.optimizer.variables))


def test_every_setting_comes_back(tmp_path: Path) -> None:
    settings = {
        "sync_period": 5,
        "slow_lr": 0.5,
        "slow_momentum": 0.25,
        "nesterov": True,
        "buffers": "average",
        "warmup_steps": 2,
    }
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(0.1),
        name="mine",
        compression=hvd.Compression.fp16,
        sparse_as_dense=True,
        backward_passes_per_step=2,
        average_aggregated_gradients=True,
        **settings,
    )
    again = hvd.DistributedOptimizer.from_config(json.loads(json.dumps(optimizer.get_config())))
    assert again.get_config() == optimizer.get_config()
    assert {name: again.get_config()[name] for name in settings} == settings
    assert again.get_config()["compression"] == "fp16"


def test_fit_goes_on_after_loading(tmp_path: Path) -> None:
    model = compiled(INNER["Adam"])
    fit(model, range(4))
    model.save(tmp_path / f"{hvd.rank()}.keras")
    resumed = hvd_keras.load_model(tmp_path / f"{hvd.rank()}.keras")
    assert isinstance(resumed.optimizer, hvd.DistributedOptimizer)
    fit(model, range(4, 9))
    fit(resumed, range(4, 9))
    assert same(weights(resumed), weights(model))
    assert equal_on_all_ranks(resumed)


@pytest.mark.ranks(1)
def test_a_hdf5_file_brings_back_the_model_and_a_new_optimizer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Keras builds the optimizer of such a file for no variables, and says what it does."""
    model = mlp()
    model.compile(
        hvd.DistributedOptimizer(keras.optimizers.SGD(0.01)), keras.losses.MeanSquaredError()
    )
    model.fit(*batch(0), verbose=0)
    model.save(tmp_path / "model.h5")
    loaded = keras.saving.load_model(tmp_path / "model.h5")
    assert "starting with a freshly initialized optimizer" in caplog.text
    assert same(weights(loaded), weights(model))
    loaded.fit(*batch(0), epochs=3, verbose=0)
    assert loaded.optimizer.sync_stats.last.step == 3


def test_loaded_on_rank_0_alone_and_broadcast(tmp_path: Path) -> None:
    def begun() -> keras.Model:
        return compiled(
            INNER["SGD"], buffers="reset"
        )  # so that no worker has a momentum of its own

    model = begun()
    fit(model, range(5))
    path = tmp_path / "model.keras"
    model.save(path)
    everyone("saved")
    loaded = by_rank(lambda: keras.saving.load_model(path), begun)()
    fit(
        loaded,
        range(5, 10),
        callbacks=[hvd_keras.callbacks.BroadcastGlobalVariablesCallback(0)],
    )
    fit(model, range(5, 10))
    assert same(weights(loaded), weights(model))


def test_loaded_on_rank_0_alone_and_not_broadcast_is_one_error_everywhere(tmp_path: Path) -> None:
    model = compiled(INNER["SGD"])
    fit(model, range(5))
    path = tmp_path / f"{hvd.rank()}.keras"
    model.save(path)
    loaded = by_rank(lambda: keras.saving.load_model(path), lambda: compiled(INNER["SGD"]))()
    same_error_everywhere(
        ValueError, "the ranks differ in whether there is a slow state", lambda: fit(loaded, [5])
    )


def test_a_model_saved_with_a_bare_optimizer_is_wrapped_and_keeps_its_state(
    tmp_path: Path,
) -> None:
    bare = mlp()
    bare.compile(optimizer=INNER["Adam"](), loss="mse", metrics=["mae"])
    fit(bare, range(3))
    path = tmp_path / f"{hvd.rank()}.keras"
    bare.save(path)
    loaded = hvd_keras.load_model(path, sync_period=4)
    optimizer = loaded.optimizer
    assert isinstance(optimizer, hvd.DistributedOptimizer)
    assert optimizer.get_config()["sync_period"] == 4
    assert same(weights(optimizer.inner_optimizer.variables), weights(bare.optimizer.variables))
    hvd.broadcast_variables(loaded.variables, root_rank=0)
    fit(loaded, range(3, 8))
    assert equal_on_all_ranks(loaded)
    assert int(optimizer.iterations.numpy()) == 8
    assert "mae" in loaded.get_metrics_result()


def test_the_weights_of_a_bare_optimizer_load_with_one_info_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = mlp()
    bare.compile(optimizer=INNER["SGD"](), loss="mse")
    fit(bare, range(3))
    path = tmp_path / f"{hvd.rank()}.weights.h5"
    bare.save_weights(path)
    ours = mlp()
    ours.compile(optimizer=hvd.DistributedOptimizer(INNER["SGD"]()), loss="mse")
    ours.optimizer.build(ours.trainable_variables)
    before = weights(ours.optimizer.variables)
    with (
        caplog.at_level(logging.INFO, logger="slowmo_hvd"),
        # Keras' own, that it found nothing where it looks for the inner optimizer.
        pytest.warns(UserWarning, match="Skipping variable loading"),
    ):
        ours.load_weights(path)
    lines = [record for record in caplog.records if record.name == "slowmo_hvd"]
    assert [(line.levelno, line.getMessage()) for line in lines] == [
        (logging.INFO, "no slow state in this checkpoint: the slow momentum begins afresh")
    ]
    assert same(weights(ours), weights(bare))
    assert same(weights(ours.optimizer.variables), before)


def test_set_weights_takes_all_variables_or_none() -> None:
    model = compiled(INNER["SGD"])
    fit(model, range(4))
    saved = weights(model.optimizer.variables)
    fit(model, range(4, 7))
    later = weights(model.optimizer.variables)
    assert not same(saved, later)
    with pytest.raises(ValueError, match=f"has {len(saved)} variables, got 1 weights"):
        model.optimizer.set_weights(saved[:1])
    with pytest.raises(ValueError, match=r"has shape .*, got \(7,\)"):
        model.optimizer.set_weights([*saved[:-1], np.zeros(7)])
    assert same(weights(model.optimizer.variables), later)
    model.optimizer.set_weights(saved)
    assert same(weights(model.optimizer.variables), saved)


def test_a_compression_of_the_users_is_named_where_it_cannot_be_loaded() -> None:
    class Mine(hvd.Compression.fp16):
        pass

    config = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1), compression=Mine).get_config()
    with pytest.raises(ValueError, match=r"compression .*Mine, .* compile=False"):
        hvd.DistributedOptimizer.from_config(config)


def test_the_file_has_the_anchor_and_the_momentum(tmp_path: Path) -> None:
    model = compiled(INNER["SGD"])
    fit(model, range(4))
    path = tmp_path / f"{hvd.rank()}.keras"
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    optimizer = config["compile_config"]["optimizer"]
    assert optimizer["registered_name"] == "slowmo_hvd>DistributedOptimizer"
    size = sum(weight.size for weight in weights(model.trainable_variables))
    shapes = {
        variable.path.split("/")[-1]: variable.shape for variable in model.optimizer.variables
    }
    assert shapes["float32_anchor"] == shapes["float32_slow_momentum"] == (size,)
