"""The metrics of an epoch are the mean over the ranks."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from one_weight import fit, model_of, modes
from ranks import by_rank, same_error_everywhere

import slowmo_hvd.tensorflow.keras as hvd

callbacks = hvd.callbacks


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
