"""The ways to write a training loop: all give the same numbers, and none makes the ranks wait."""

import sys
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_models import (
    Array,
    batch,
    batches,
    equal_on_all_ranks,
    fit,
    mlp,
    number,
    step_with,
    train,
    weights,
)
from launch import run
from ranks import by_rank, everyone

import slowmo_hvd.tensorflow as hvd

RANKS = pytest.mark.ranks(1, 2)
STEPS = 10
SYNCS = [4, 8, 10]  # the last is the flush


def wrapped(**options: Any) -> hvd.DistributedOptimizer:
    inner = keras.optimizers.SGD(0.25, momentum=0.75, nesterov=True)
    return hvd.DistributedOptimizer(inner, **({"sync_period": 4, "slow_momentum": 0.5} | options))


class OwnStep(keras.Model):
    """A model with a training step of its own, as Keras' guides write one."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = mlp()

    def call(self, x: Any, training: bool = False) -> Any:
        return self.inside(x, training=training)

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


class Unbuilt(keras.Model):
    """A model that makes its variables when it first sees data."""

    def __init__(self) -> None:
        super().__init__()
        normal = keras.initializers.RandomNormal(stddev=0.5, seed=0)
        self.first = keras.layers.Dense(4, "tanh", kernel_initializer=normal)
        self.second = keras.layers.Dense(2, kernel_initializer=normal)

    def call(self, x: Any) -> Any:
        return self.second(self.first(x))


def in_fit(model: keras.Model, optimizer: hvd.DistributedOptimizer, **options: Any) -> None:
    model.compile(optimizer, loss="mse", **options)
    fit(model, range(STEPS))


def in_loop(model: keras.Model, optimizer: hvd.DistributedOptimizer, *, graph: bool) -> None:
    train(model, optimizer, range(STEPS), graph=graph)
    optimizer.flush()


def in_a_loop_inside_the_graph(model: keras.Model, optimizer: hvd.DistributedOptimizer) -> None:
    xs, ys = (array.reshape(STEPS, 5, -1) for array in batches(range(STEPS)))
    variables = model.trainable_variables

    @tf.function
    def loop() -> None:
        for x, y in tf.data.Dataset.from_tensor_slices((xs, ys)):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
            gradients = tape.gradient(loss, variables)
            optimizer.apply_gradients(zip(gradients, variables, strict=True))

    loop()
    optimizer.flush()


def on_batches(model: keras.Model, optimizer: hvd.DistributedOptimizer) -> None:
    model.compile(optimizer, loss="mse")
    for step in range(STEPS):
        model.train_on_batch(*batch(step))
    optimizer.flush()


LOOPS: dict[str, Callable[[keras.Model, hvd.DistributedOptimizer], None]] = {
    "tf.function": lambda model, optimizer: in_loop(model, optimizer, graph=True),
    "in the graph": in_a_loop_inside_the_graph,
    "fit": in_fit,
    "fit eagerly": lambda model, optimizer: in_fit(model, optimizer, run_eagerly=True),
    "3 steps an execution": lambda model, optimizer: in_fit(
        model, optimizer, steps_per_execution=3
    ),
    "train_on_batch": on_batches,
}


def outcome(
    loop: Callable[[keras.Model, hvd.DistributedOptimizer], None],
    model: keras.Model,
    **options: Any,
) -> tuple[list[int], list[Array]]:
    """After which steps the loop synchronised, and the weights at its end."""
    optimizer, syncs = wrapped(**options), []
    optimizer.register_sync_hook(lambda record: syncs.append(record.step))
    loop(model, optimizer)
    assert equal_on_all_ranks(model)
    return syncs, weights(model)


@RANKS
@pytest.mark.parametrize("name", [*LOOPS, "a training step of its own"])
def test_all_loops_give_the_numbers_of_the_eager_one(name: str) -> None:
    syncs, expected = outcome(lambda *both: in_loop(*both, graph=False), mlp())
    assert syncs == SYNCS
    model = OwnStep() if name not in LOOPS else mlp()
    syncs, ours = outcome(LOOPS.get(name, in_fit), model)
    assert syncs == SYNCS
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@RANKS
@pytest.mark.parametrize(
    ("name", "pace"),
    [
        ("tf.function", {"overlap_steps": 1, "fragments": 2}),
        ("in the graph", {"overlap_steps": 3}),
        ("fit", {"overlap_steps": 3}),
        ("3 steps an execution", {"overlap_steps": 1, "fragments": 2}),
    ],
)
def test_with_an_overlap_all_loops_give_the_numbers_of_the_eager_one(
    name: str, pace: dict[str, int]
) -> None:
    expected_syncs, expected = outcome(lambda *both: in_loop(*both, graph=False), mlp(), **pace)
    syncs, ours = outcome(LOOPS[name], mlp(), **pace)
    assert syncs == expected_syncs
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


# ---- variables made in the first step ------------------------------------------------------


@RANKS
def test_a_model_without_variables_yet_in_fit() -> None:
    model, optimizer = Unbuilt(), wrapped(sync_period=2)
    model.compile(optimizer, loss="mse")
    fit(model, range(5))
    assert [int(optimizer.iterations), optimizer.sync_stats.syncs] == [5, 3]
    assert equal_on_all_ranks(model)


@RANKS
def test_horovods_own_script_with_a_model_without_variables_yet() -> None:
    """As in examples/tensorflow2/tensorflow2_mnist.py: the broadcast follows the first step."""
    model = keras.Sequential([keras.layers.Dense(4, "tanh"), keras.layers.Dense(2)])
    optimizer, loss_of = wrapped(sync_period=2), keras.losses.MeanSquaredError()

    @tf.function
    def training_step(x: Any, y: Any, first_batch: bool) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        tape = hvd.DistributedGradientTape(tape)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        if first_batch:
            hvd.broadcast_variables(model.variables, root_rank=0)
            hvd.broadcast_variables(optimizer.variables(), root_rank=0)
        return loss

    equal = []
    for step in range(5):
        loss = training_step(*map(tf.constant, batch(step)), step == 0)
        assert np.isfinite(loss.numpy())
        equal.append(equal_on_all_ranks(model))
    assert equal == [True, True, hvd.size() == 1, True, hvd.size() == 1]  # the first: broadcast
    assert int(optimizer.iterations) == 5


# ---- retracing -----------------------------------------------------------------------------


@pytest.mark.ranks(2)
@pytest.mark.parametrize("loop", ["fit", "tf.function"])
def test_a_rank_that_retraces_alone_does_not_hang(loop: str) -> None:
    """The last batch is smaller on rank 1: TensorFlow makes a second graph there, mid-window."""
    model, optimizer = mlp(), wrapped(sync_period=2)
    x, y = (array[: by_rank(25, 23)] for array in batches(range(5)))
    if loop == "fit":
        model.compile(optimizer, loss="mse")
        model.fit(x, y, batch_size=5, verbose=0)
    else:
        optimizer.build(model.trainable_variables)

        @tf.function
        def step(x: Any, y: Any) -> None:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(x) - y) ** 2)
            variables = model.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

        for start in range(0, 25, 5):
            step(tf.constant(x[start : start + 5]), tf.constant(y[start : start + 5]))
        assert everyone(step.experimental_get_tracing_count()) == [1, 2]
        optimizer.flush()
    assert everyone(optimizer.sync_stats.syncs) == [3, 3]
    assert equal_on_all_ranks(model)


@pytest.mark.ranks(2)
def test_eager_and_graph_steps_can_take_turns() -> None:
    weight, optimizer = number(0.0), wrapped(sync_period=3)

    def step() -> None:
        step_with(optimizer, (1.0 + hvd.rank(), weight))

    graph, seen = tf.function(step), []
    for name in by_rank("egegeg", "gegege"):
        (graph if name == "g" else step)()
        seen.append(equal_on_all_ranks([weight]))
    assert seen == [False, False, True] * 2


# ---- variables -----------------------------------------------------------------------------


@RANKS
@pytest.mark.parametrize("graph", [False, True])
def test_plain_variables(graph: bool) -> None:
    """Keras' own too; and some without a gradient, which Keras warns of."""
    first = tf.Variable([1.0, 2.0])
    second = keras.Variable([[3.0]])
    third = tf.Variable(4.0, name="alone")
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(0.5), sync_period=1, slow_momentum=0.0
    )

    def step() -> None:
        gradients = [tf.constant([1.0, 3.0]), None, tf.constant(2.0)]
        optimizer.apply_gradients(zip(gradients, [first, second, third], strict=True))

    with pytest.warns(UserWarning, match="Gradients do not exist for variables"):
        (tf.function(step) if graph else step)()
    assert first.numpy().tolist() == [0.5, 0.5]
    assert second.numpy().tolist() == [[3.0]]
    assert third.numpy() == 3.0
    assert optimizer.sync_stats.syncs == 1


@RANKS
def test_variables_is_a_list_and_can_be_called_as_horovods_scripts_do() -> None:
    weight, optimizer = number(1.0), wrapped()
    before = len(optimizer.variables)
    step_with(optimizer, (1.0, weight))
    assert len(optimizer.variables) > before
    assert [id(v) for v in optimizer.variables()] == [id(v) for v in optimizer.variables]
    inner = {id(v) for v in optimizer.inner_optimizer.variables}
    assert inner < {id(v) for v in optimizer.variables}
    assert len({id(v) for v in optimizer.variables}) == len(optimizer.variables)


@RANKS
def test_apply_takes_gradients_alone_once_it_is_built() -> None:
    weight, optimizer = number(1.0), wrapped(sync_period=1, slow_momentum=0.0)
    with pytest.raises(ValueError, match=r"give apply\(\) the variables of the gradients, or call"):
        optimizer.apply([tf.constant([1.0])])
    optimizer.build([weight])
    optimizer.apply([tf.constant([1.0])])
    assert weight.numpy().item() == pytest.approx(1 - 0.25 * 1.75)


@RANKS
def test_no_gradients_at_all_are_no_step() -> None:
    optimizer = wrapped(sync_period=1)
    optimizer.apply([])
    assert optimizer.sync_stats.syncs == int(optimizer.iterations) == 0


# ---- tapes ---------------------------------------------------------------------------------


@RANKS
@pytest.mark.parametrize("wrap", [hvd.DistributedGradientTape, hvd.PartialDistributedGradientTape])
def test_a_distributed_tape_leaves_gradients_local(wrap: Callable[..., Any]) -> None:
    weight, _ = number(2.0), wrapped()
    with wrap(tf.GradientTape()) as tape:
        loss = weight * (hvd.rank() + 3.0)
    assert tape.gradient(loss, weight).numpy().tolist() == [hvd.rank() + 3.0]
    with tf.GradientTape(persistent=True) as tape:
        loss = weight**2
    tape = wrap(tape, "", compression=hvd.Compression.none, op=hvd.Average)
    assert tape.gradient(loss, [weight])[0].numpy().tolist() == [4.0]


@pytest.mark.parametrize("wrap", [hvd.DistributedGradientTape, hvd.PartialDistributedGradientTape])
def test_an_argument_that_would_have_no_effect_is_refused(wrap: Callable[..., Any]) -> None:
    wrapped()
    with pytest.raises(ValueError, match="leave it out here, and give compression to Distributed"):
        wrap(tf.GradientTape(), compression=hvd.Compression.fp16)
    with pytest.raises(TypeError, match="unexpected keyword argument 'compresion'"):
        wrap(tf.GradientTape(), compresion=hvd.Compression.none)


def test_a_partial_tape_with_local_layers_is_refused() -> None:
    wrapped()
    with pytest.raises(ValueError, match="local_layers cannot be kept out of SlowMo's average"):
        hvd.PartialDistributedGradientTape(tf.GradientTape(), local_layers=[keras.layers.Dense(2)])
    assert hvd.PartialDistributedGradientTape(tf.GradientTape(), local_layers=[])


@pytest.mark.parametrize("given", [None, "tape", tf.GradientTape])
def test_only_a_tape_can_be_wrapped(given: Any) -> None:
    with pytest.raises(TypeError, match=r"gradtape must be a tf\.GradientTape, got"):
        hvd.DistributedGradientTape(given)


def test_a_tape_without_a_distributed_optimizer_is_refused() -> None:
    """Such a script trained its workers apart for good, each on its own gradients."""
    script = """
        import keras, tensorflow as tf
        import slowmo_hvd.tensorflow as hvd
        hvd.init()
        with tf.GradientTape() as tape:
            pass
        try:
            hvd.DistributedGradientTape(tape)
        except ValueError as error:
            print(error)
        hvd.DistributedOptimizer(keras.optimizers.SGD(0.1))
        print(hvd.DistributedGradientTape(tape) is tape)
    """
    done = run([sys.executable, "-c", textwrap.dedent(script)])
    assert done.returncode == 0, done.stdout
    assert "wrap the optimizer too, optimizer = hvd.DistributedOptimizer(optimizer)" in done.stdout
    assert done.stdout.splitlines()[-1] == "True"


@RANKS
def test_many_functions_with_one_optimizer_agree_once() -> None:
    weight, optimizer = number(0.0), wrapped(sync_period=2)

    def taken(steps: Iterable[int]) -> None:
        for step in steps:
            tf.function(lambda g: step_with(optimizer, (g, weight)))(float(step))

    taken(range(2))
    optimizer._training.agree = lambda: pytest.fail("asked the other ranks again")
    taken(range(2, 5))
    assert optimizer.sync_stats.syncs == 2
