"""``broadcast_variables`` with variables of Keras 3 and of TensorFlow, eagerly and in graphs."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from ranks import by_rank, everyone

import slowmo_hvd.tensorflow as hvd
from slowmo_hvd.tensorflow import functions

pytestmark = pytest.mark.ranks(1, 2)

MAKE = {"keras": keras.Variable, "tf": tf.Variable}


def mine(value: float, shape: tuple[int, ...] = (2, 3)) -> np.ndarray:
    """An array that is another on every rank, each of its elements too."""
    return (value + hvd.rank() + np.arange(np.prod(shape)).reshape(shape)).astype("float32")


def values(variables: Iterable[Any]) -> list[list[float]]:
    return [np.asarray(variable).tolist() for variable in variables]


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize("inplace", [False, True])
def test_every_rank_gets_the_roots_values(make: Any, inplace: bool) -> None:
    for root in range(hvd.size()):
        variables = [make(mine(1.0)), make(mine(10.0, ())), make(mine(20.0, (4,)))]
        expected = everyone(values(variables))[root]
        hvd.broadcast_variables(variables, root_rank=root, inplace=inplace)
        assert values(variables) == expected


@pytest.mark.parametrize("collect", [list, tuple, iter])
def test_any_iterable_will_do(collect: Callable[[Any], Iterable[Any]]) -> None:
    variables = [keras.Variable(mine(1.0)), tf.Variable(mine(5.0))]
    expected = everyone(values(variables))[0]
    hvd.broadcast_variables(collect(variables), root_rank=0)
    assert values(variables) == expected
    hvd.broadcast_variables([], root_rank=0)


@pytest.mark.parametrize(
    "dtype",
    [
        *("float16", "bfloat16", "float32", "float64", "complex64", "bool"),
        *("int8", "uint8", "int16", "int32", "uint32", "int64"),
    ],
)
def test_every_dtype_arrives_bit_for_bit(dtype: str) -> None:
    raw = by_rank([0, 1, 1], [1, 0, 0])
    variable = tf.Variable(tf.cast(raw, dtype))
    empty = tf.Variable(tf.zeros((0, 2), dtype))
    scalar = tf.Variable(tf.cast(hvd.rank(), dtype))
    hvd.broadcast_variables([empty, variable, scalar], root_rank=0)
    assert variable.dtype == scalar.dtype == dtype
    assert values([variable, scalar]) == [[0, 1, 1], 0]


@pytest.mark.parametrize("inplace", [False, True])
def test_it_works_inside_a_function(inplace: bool) -> None:
    variables = [keras.Variable(mine(1.0)), tf.Variable(mine(5.0)), keras.Variable(hvd.rank() > 0)]
    expected = everyone(values(variables))[0]

    @tf.function
    def broadcast() -> Any:
        hvd.broadcast_variables((v for v in variables), root_rank=0, inplace=inplace)
        return variables[0] + 1.0

    after = broadcast()
    assert values(variables) == expected
    assert np.asarray(after - 1.0).tolist() == expected[0]


@pytest.mark.parametrize("inplace", [False, True])
def test_variables_pair_by_their_order_whatever_their_names(inplace: bool) -> None:
    for _ in range(hvd.rank()):
        keras.layers.Dense(1)  # so that the next has another number in its name
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    if hvd.size() > 1:
        assert len(set(everyone(layer.kernel.path))) == hvd.size()
    layer.kernel.assign(mine(1.0, (3, 2)))
    expected = everyone(layer.kernel.numpy().tolist())[0]
    hvd.broadcast_variables(layer.variables, root_rank=0, inplace=inplace)
    assert layer.kernel.numpy().tolist() == expected


@pytest.mark.parametrize("graph", [False, True])
def test_many_variables_travel_in_several_pieces(
    graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "_CHUNK", 12)
    shapes: list[tuple[int, ...]] = [(2,), (1,), (1,), (5,), (), (0,), (3,)]
    variables = [tf.Variable(mine(index, shape)) for index, shape in enumerate(shapes)]
    assert [len(chunk) for chunk in functions._chunks(variables)] == [2, 1, 1, 2, 1]
    expected = everyone(values(variables))[0]
    broadcast = tf.function(hvd.broadcast_variables) if graph else hvd.broadcast_variables
    broadcast(variables, root_rank=0)
    assert values(variables) == expected


def test_two_broadcasts_in_one_graph_do_not_meet() -> None:
    variables = [tf.Variable(mine(1.0)), tf.Variable(mine(9.0))]
    expected = [everyone(values([one]))[hvd.size() - 1] for one in variables]

    @tf.function
    def broadcast() -> None:
        for index, variable in enumerate(variables):
            with tf.name_scope(f"scope{index}"):
                hvd.broadcast_variables([variable], root_rank=hvd.size() - 1)

    broadcast()
    assert [values([one]) for one in variables] == expected


def test_in_a_graph_of_tensorflow_1_an_operation_does_it() -> None:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variable = tf.compat.v1.get_variable("v", initializer=mine(1.0), use_resource=True)
        session.run(tf.compat.v1.global_variables_initializer())
        for inplace in (False, True):
            operation = hvd.broadcast_variables([variable], hvd.size() - 1, inplace=inplace)
            assert isinstance(operation, tf.Operation)
            session.run(operation)
            last = mine(1.0) + (hvd.size() - 1 - hvd.rank())
            assert session.run(variable).tolist() == last.tolist()
            session.run(variable.assign(mine(1.0)))


def test_an_array_read_before_keeps_the_old_value() -> None:
    variable = tf.Variable(mine(1.0))
    before = variable.numpy()
    for inplace in (False, True):
        hvd.broadcast_variables([variable], root_rank=hvd.size() - 1, inplace=inplace)
        assert before.tolist() == mine(1.0).tolist()


def test_the_states_of_random_generators_are_not_shared() -> None:
    inner = keras.Sequential([keras.Input((2,)), keras.layers.Dropout(0.5)])
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), inner])
    shared = [variable.path for variable in functions.shared_variables(model)]
    assert len(shared) == 2
    assert len(model.variables) == 3
    assert all("dense" in path for path in shared)
