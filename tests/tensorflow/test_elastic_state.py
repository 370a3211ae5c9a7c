"""Elastic states and their callbacks: commit, restore and sync lose nothing of a Keras model.

The models are one weight w from 0, whose gradient is the target: the loss is y·w·1.
"""

from collections.abc import Callable
from typing import Any

import horovod.tensorflow.elastic as horovod_elastic
import keras
import numpy as np
import pytest
import tensorflow as tf
from horovod.common.elastic import notification_manager
from horovod.common.exceptions import HorovodInternalError, HostsUpdatedInterrupt
from horovod.runner.elastic.worker import HostUpdateResult
from ranks import by_rank, everyone

import slowmo_hvd.tensorflow as hvd
import slowmo_hvd.tensorflow.keras as hvd_keras

elastic = hvd_keras.elastic


def product(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean(y_true * y_pred)


def plain() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(1.0, momentum=0.5)


def slowmo() -> keras.optimizers.Optimizer:
    # With a reset all ranks' buffers are rank 0's where a window begins.
    return hvd_keras.DistributedOptimizer(plain(), sync_period=2, buffers="reset")


def model_with(optimizer: keras.optimizers.Optimizer, **mode: Any) -> keras.Model:
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    dropout = keras.layers.Dropout(1e-9, seed=hvd.rank())  # has a random generator, drops nothing
    model = keras.Sequential([keras.Input((1,)), layer, dropout])
    model.compile(optimizer, product, **{"run_eagerly": True, "jit_compile": False, **mode})
    return model


def gradients(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets: gradients of 1 on rank 0 and 2 on rank 1."""
    x = np.ones((steps, 1), "float32")
    return x, x * (1 + hvd.rank())


def train(model: keras.Model, *callbacks: Any, steps: int = 3, epochs: int = 1) -> None:
    """Batches of one."""
    x, y = gradients(steps)
    model.fit(x, y, 1, epochs, verbose=0, callbacks=list(callbacks))


def step(model: keras.Model, steps: int = 3) -> None:
    """Without the flush that ends ``fit``."""
    for _ in range(steps):
        model.train_on_batch(*gradients(1))


def held(model: keras.Model) -> list[Any]:
    """The values of the weight and of all that the optimizer has."""
    variables = (*model.trainable_variables, *model.optimizer.variables)
    return [variable.numpy().tolist() for variable in variables]


def seeds(model: keras.Model) -> list[int]:
    state: list[int] = model.layers[-1].seed_generator.state.numpy().tolist()
    return state


optimizers = pytest.mark.parametrize("make", [plain, slowmo])


# ---- KerasState ------------------------------------------------------------------------------


@pytest.mark.ranks(1, 2)
@optimizers
def test_restore_brings_back_what_was_committed(make: Callable[[], Any]) -> None:
    model = model_with(make())
    step(model)
    state = elastic.KerasState(model, batch=3, epoch=1)
    step(model, 2)
    state.batch, state.epoch = 5, 2
    state.commit()
    committed, own = held(model), seeds(model)
    step(model)
    state.batch, state.epoch = 0, 3
    assert held(model) != committed
    assert seeds(model) != own
    state.restore()
    assert held(model) == committed
    assert seeds(model) == own
    assert (state.batch, state.epoch) == (5, 2)


@pytest.mark.ranks(1, 2)
@optimizers
def test_a_new_state_restores_to_where_it_was_made(make: Callable[[], Any]) -> None:
    model = model_with(make())
    step(model)
    before = held(model)
    state = elastic.KerasState(model)
    step(model)
    state.restore()
    assert held(model) == before


@pytest.mark.ranks(1, 2)
@optimizers
def test_sync_gives_every_rank_the_state_of_rank_0(make: Callable[[], Any]) -> None:
    old, new = model_with(make()), model_with(make())
    step(old)
    expected = everyone(held(old))[0]
    model = by_rank(old, new)  # a worker that has just arrived has taken no step
    state = elastic.KerasState(model, epoch=by_rank(4, 0))
    own = seeds(model)
    state.sync()
    assert held(model) == expected
    assert state.epoch == 4
    assert seeds(model) == own
    step(model, 2)
    assert held(model) != expected
    state.restore()
    assert held(model) == expected
    assert seeds(model) == own


@pytest.mark.ranks(2)
def test_slowmo_goes_on_with_a_worker_that_has_arrived() -> None:
    old, new = model_with(slowmo()), model_with(slowmo())
    step(old)
    model = by_rank(old, new)
    elastic.KerasState(model).sync()
    step(model, 1)  # ends the window that rank 0 began
    assert model.optimizer.sync_stats.last.workers == 2
    assert model.optimizer.sync_stats.last.window == 1
    weights = everyone(model.trainable_variables[0].numpy().item())
    assert weights[0] == weights[1]


@pytest.mark.ranks(1)
def test_an_optimizer_outside_the_model_is_built_and_saved() -> None:
    model = model_with(plain())
    other = keras.optimizers.Adam(0.5)
    state = elastic.KerasState(model, optimizer=other)
    assert other.built
    assert not model.optimizer.built
    other.apply_gradients([(tf.ones((1, 1)), model.trainable_variables[0])])
    assert int(other.iterations) == 1
    state.restore()
    assert int(other.iterations) == 0
    assert model.trainable_variables[0].numpy() == 0


@pytest.mark.ranks(1)
def test_what_cannot_be_saved_is_refused() -> None:
    unbuilt = keras.Sequential([keras.layers.Dense(1)])
    with pytest.raises(ValueError, match=r"Model must be built first.* keras\.Input\(shape\)"):
        elastic.KerasState(unbuilt)
    uncompiled = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="not compiled with an optimizer, and none is given"):
        elastic.KerasState(uncompiled)


# ---- TensorFlowState -------------------------------------------------------------------------


@pytest.mark.ranks(1, 2)
def test_a_state_of_variables_saves_restores_and_synchronizes() -> None:
    values = [keras.Variable(float(hvd.rank())), tf.Variable([hvd.rank()], dtype=tf.int64)]
    state = hvd.elastic.TensorFlowState(iter(values), step=hvd.rank())

    def all_of_it() -> tuple[Any, ...]:
        return (*(np.asarray(value).tolist() for value in values), state.step)

    assert all_of_it() == (hvd.rank(), [hvd.rank()], hvd.rank())  # making it sends nothing
    values[0].assign(7.0)
    state.restore()
    assert all_of_it() == (hvd.rank(), [hvd.rank()], hvd.rank())
    state.sync()
    assert all_of_it() == (0, [0], 0)


@pytest.mark.ranks(1)
def test_a_state_of_variables_needs_variables_and_no_session() -> None:
    with pytest.raises(ValueError, match="needs the variables to save"):
        hvd.elastic.TensorFlowState()
    with pytest.raises(ValueError, match="takes no session"):
        hvd.elastic.TensorFlowState([tf.Variable(1.0)], session=object())


@pytest.mark.ranks(1)
def test_a_committed_value_is_a_copy() -> None:
    variable = tf.Variable([1.0, 2.0])
    state = hvd.elastic.TensorFlowState([variable])
    variable.assign_add([1.0, 1.0])
    state.restore()
    assert variable.numpy().tolist() == [1, 2]


# ---- run -------------------------------------------------------------------------------------


@pytest.mark.ranks(1, 2)
@optimizers
def test_run_restores_and_goes_on_after_a_failure(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the restart of Horovod itself, which cannot be done in the middle of the tests."""
    monkeypatch.setattr(horovod_elastic, "_reset", lambda: None)
    model = model_with(make())
    state = elastic.KerasState(model, batch=0, epoch=0)
    tries = []

    class Fail(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if len(tries) == 1 and epoch == 1:
                self.model.trainable_variables[0].assign([[100.0]])
                raise HorovodInternalError("as if a worker had died")

    @elastic.run
    def run(state: Any) -> None:
        tries.append(state.epoch)
        callbacks = [
            elastic.UpdateEpochStateCallback(state),
            elastic.UpdateBatchStateCallback(state),
            elastic.CommitStateCallback(state, batches_per_commit=2),
            Fail(),
        ]
        train(model, *callbacks, steps=2, epochs=3 - state.epoch)

    run(state)
    assert tries == [0, 1]
    assert state.epoch == 3
    whole = model_with(make())
    train(whole, steps=2, epochs=3)
    if make is slowmo or hvd.rank() == 0:  # else the sync after the failure gave rank 0's weight
        assert held(model) == held(whole)


@pytest.mark.ranks(1)
def test_run_recovers_from_a_worker_lost_inside_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horovod_elastic, "_reset", lambda: None)
    state = elastic.KerasState(model_with(slowmo()), step=0)
    broadcast, tries = state._broadcast, []

    def fail_once() -> None:
        tries.append(state.step)
        if len(tries) == 1:
            raise tf.errors.UnknownError(None, None, "{{node HorovodBroadcast}} shut down")
        broadcast()

    monkeypatch.setattr(state, "_broadcast", fail_once)
    assert elastic.run(lambda state: "trained")(state) == "trained"
    assert tries == [0, 0]


@pytest.mark.ranks(1)
def test_run_raises_an_unknown_error_that_is_not_horovods() -> None:
    """Horovod's own takes it for the end of the training."""
    state = elastic.KerasState(model_with(plain()))

    @elastic.run
    def run(state: Any) -> None:
        raise tf.errors.UnknownError(None, None, "the disk is full")

    with pytest.raises(tf.errors.UnknownError, match="the disk is full"):
        run(state)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("graph", [False, True])
def test_before_run_one_step_is_local_and_a_second_is_refused(
    graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOROVOD_ELASTIC", "1")
    monkeypatch.setattr(notification_manager, "_service", None)
    weight = tf.Variable([0.0])
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0), sync_period=2)

    def step() -> None:
        optimizer.apply_gradients([(tf.constant([by_rank(1.0, 3.0)]), weight)])

    run = tf.function(step, autograph=False) if graph else step
    for turn in range(2):
        if hvd.rank() == turn:
            run()
        everyone(None)  # the other rank stands here meanwhile
    optimizer.flush()
    assert weight.numpy() == [by_rank(-1, -3)]
    with pytest.raises(
        (RuntimeError, tf.errors.OpError), match=r"and this is another\. Train inside, and put"
    ):
        run()
    weight.assign([by_rank(-1.0, -3.0)])
    state = hvd.elastic.TensorFlowState([weight, *optimizer.variables])
    state.sync()
    assert weight.numpy() == [-1]
    run()
    run()
    assert weight.numpy() == [-5]  # d̄ = 4
    assert optimizer.sync_stats.last.step == 2


# ---- callbacks -------------------------------------------------------------------------------


class Commits:
    """A state that notes what is committed."""

    def __init__(self) -> None:
        self.batch = self.epoch = 0
        self.seen: list[tuple[int, int]] = []

    def commit(self) -> None:
        self.seen.append((self.epoch, self.batch))


def updates(state: Any, batches_per_commit: int = 1) -> list[keras.callbacks.Callback]:
    return [
        elastic.UpdateEpochStateCallback(state),
        elastic.UpdateBatchStateCallback(state),
        elastic.CommitStateCallback(state, batches_per_commit),
    ]


@pytest.mark.ranks(1)
def test_state_is_updated_and_committed_every_batch_and_epoch() -> None:
    state = Commits()
    train(model_with(plain()), *updates(state), steps=2, epochs=2)
    assert state.seen == [(0, 0), (0, 1), (1, 0), (1, 0), (1, 1), (2, 0)]


@pytest.mark.ranks(1)
@pytest.mark.parametrize("eager", [False, True])
def test_commits_may_be_rarer_and_count_on_over_epochs(eager: bool) -> None:
    state = Commits()
    train(model_with(plain(), run_eagerly=eager), *updates(state, 2), steps=3, epochs=2)
    assert state.seen == [(0, 1), (1, 0), (1, 0), (1, 2), (2, 0)]


@pytest.mark.ranks(1)
def test_several_steps_an_execution_count_as_one_batch() -> None:
    state = Commits()
    model = model_with(plain(), run_eagerly=False, steps_per_execution=2)
    train(model, *updates(state, 2), steps=4)
    assert state.seen == [(0, 3), (1, 0)]


@pytest.mark.ranks(1)
def test_a_reset_begins_to_count_again_and_epochs_go_on() -> None:
    state = Commits()
    callbacks = updates(state, 2)
    model = model_with(plain())
    stop = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: setattr(model, "stop_training", True)
    )
    train(model, *callbacks, stop)
    state.seen.clear()
    train(model, *callbacks, steps=2)
    assert state.seen == [(1, 1), (2, 0)]


@pytest.mark.ranks(1)
def test_an_epoch_after_a_reset_is_as_long_as_its_data() -> None:
    """Horovod's callback is to shorten it by ``params["steps"]``, which Keras 3 never reads."""
    state = Commits()
    state.batch = 2
    model = model_with(keras.optimizers.SGD(1.0))
    watch = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: None)
    train(model, *updates(state), watch, steps=3)
    assert model.trainable_variables[0].numpy() == -3
    assert watch.params["steps"] == 3


@pytest.mark.ranks(1, 2)
def test_a_commit_interrupts_every_rank_when_rank_0_hears_of_new_hosts() -> None:
    model = model_with(plain())
    state = elastic.KerasState(model, batch=0, epoch=0)
    if hvd.rank() == 0:
        state.on_hosts_updated(1, HostUpdateResult.added)
    with pytest.raises(HostsUpdatedInterrupt):
        train(model, *updates(state))
    step(model, 1)
    state.restore()  # to the first batch
    assert model.trainable_variables[0].numpy() == -1 - hvd.rank()


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("eager", [True, False])
def test_a_step_in_a_reset_callback_is_an_error_and_no_hang(eager: bool) -> None:
    """Horovod's Keras example fits one step there; workers that have just arrived do not."""
    model = model_with(slowmo(), run_eagerly=eager)
    model.fit(*gradients(1), verbose=0)
    state = elastic.KerasState(model)
    state.register_reset_callbacks([lambda: model.fit(*gradients(1), verbose=0)])
    with pytest.raises(RuntimeError, match="a training step in a reset callback cannot be aver"):
        state.on_reset()
    model.fit(*gradients(2), verbose=0)  # outside of it
