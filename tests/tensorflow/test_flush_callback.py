"""What validates or saves at the end of an epoch sees the workers' average."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from one_weight import compile_, fit, model_of, modes, saves, slowmo, weight
from ranks import by_rank, everyone

import slowmo_hvd.tensorflow.keras as hvd

callbacks = hvd.callbacks


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
