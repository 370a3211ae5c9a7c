"""All ranks begin ``model.fit`` with the root's model and optimizer."""

from typing import Any

import keras
import numpy as np
import pytest
from one_weight import compile_, fit, model_of, modes, slowmo, weight
from ranks import by_rank, everyone, same_error_everywhere

import slowmo_hvd.tensorflow.keras as hvd

callbacks = hvd.callbacks


class Unbuilt(keras.Model):  # type: ignore[misc]
    """One weight, which there is not before the first batch."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(
            1, use_bias=False, kernel_initializer=keras.initializers.Constant(start)
        )

    def call(self, x: Any) -> Any:
        return self.dense(x)


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
