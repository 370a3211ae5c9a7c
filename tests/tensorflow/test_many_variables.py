"""Of many variables a step's graph stays small, a sync keeps its place in it, and no graph is made
twice."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_models import number, step_with
from ranks import by_rank

import slowmo_hvd.tensorflow as hvd
from slowmo_hvd.tensorflow import tensors

pytestmark = pytest.mark.ranks(2)

INNERS: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "SGD": lambda: keras.optimizers.SGD(0.5),
    "momentum": lambda: keras.optimizers.SGD(0.5, momentum=0.5),
    "Adam": lambda: keras.optimizers.Adam(0.5),
}


def wrapped(inner: keras.optimizers.Optimizer | None = None, period: int = 3):
    return hvd.DistributedOptimizer(inner or keras.optimizers.SGD(0.5), sync_period=period)


def traced(optimizer: keras.optimizers.Optimizer, count: int) -> tf.Graph:
    variables = [number(1.0) for _ in range(count)]
    step = tf.function(lambda: step_with(optimizer, *((1.0, v) for v in variables)))
    return step.get_concrete_function().graph


@pytest.mark.parametrize("inner", INNERS)
def test_a_variable_more_adds_no_operation_and_nothing_to_the_branch(inner: str) -> None:
    make = INNERS[inner]

    def more(count: int) -> int:
        ours = traced(wrapped(make()), count).get_operations()
        return len(ours) - len(traced(make(), count).get_operations())

    assert more(40) <= more(10)
    (branch,) = [
        op
        for op in traced(wrapped(make()), 40).get_operations()
        if op.type in ("If", "StatelessIf")
    ]
    assert len(branch.inputs) <= 4


@pytest.mark.parametrize("loop", ["unrolled", "in the graph"])
@pytest.mark.parametrize("inner", INNERS)
def test_what_uses_a_variable_in_the_same_graph_comes_before_a_sync_or_after(
    inner: str, loop: str
) -> None:
    """Large ones, of which a read out of place would see some."""

    def course(*, graph: bool) -> list[np.ndarray]:
        optimizer = wrapped(INNERS[inner](), period=2)
        weights = [tf.Variable(tf.fill([50_000], float(i))) for i in range(8)]
        gradients = [tf.fill([50_000], by_rank(1.0, 3.0)) for _ in weights]

        def step() -> tf.Tensor:
            optimizer.apply_gradients(zip(gradients, weights, strict=True))
            seen = tf.stack([tf.reduce_sum(weight) for weight in weights])
            for weight in weights:
                weight.assign_add(tf.ones_like(weight))
            return tf.concat([seen, [tf.reduce_sum(weight) for weight in weights]], 0)

        def steps() -> tf.Tensor:
            return tf.stack([step() for _ in range(4)])

        def in_the_graph() -> tf.Tensor:
            return tf.map_fn(lambda _: step(), tf.range(4), fn_output_signature=tf.float32)

        if not graph:
            return [steps().numpy(), *(weight.numpy() for weight in weights)]
        made = tf.function(steps if loop == "unrolled" else in_the_graph, autograph=False)
        return [made().numpy(), *(weight.numpy() for weight in weights)]

    for found, expected in zip(course(graph=True), course(graph=False), strict=True):
        assert np.allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sync_in_graphs_gives_the_same_bits_as_one_of_single_operations(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def course(eager_calls: int) -> list[np.ndarray]:
        monkeypatch.setattr(tensors, "_EAGER_CALLS", eager_calls)
        optimizer = hvd.DistributedOptimizer(
            keras.optimizers.SGD(0.1), sync_period=1, bucket_bytes=40
        )
        generator = np.random.default_rng(0)
        shapes = [(3,), (), (5, 5), (2, 1)]
        weights = [tf.Variable(tf.constant(generator.normal(size=s), dtype)) for s in shapes]
        generator = np.random.default_rng(hvd.rank())
        for _ in range(4):
            gradients = [tf.constant(generator.normal(size=s), dtype) for s in shapes]
            optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return [weight.numpy() for weight in weights]

    eager, graphs, then = course(100), course(0), course(2)
    for values in zip(eager, graphs, then, strict=True):
        assert np.array_equal(values[0], values[1])
        assert np.array_equal(values[0], values[2])


def test_an_agreement_on_the_same_variables_makes_no_graph_anew() -> None:
    optimizer, weights = wrapped(period=1), [number(1.0) for _ in range(3)]
    step_with(optimizer, *((by_rank(1.0, 3.0), weight) for weight in weights))
    slow = optimizer._training._slow
    graphs = dict(slow._graphs)
    assert graphs
    optimizer.after_broadcast()
    step_with(optimizer, *((by_rank(1.0, 3.0), weight) for weight in weights))
    assert slow._graphs == graphs
    assert all(graph.experimental_get_tracing_count() == 1 for graph in graphs.values())
