"""Horovod's functions for variables, which here also take those of Keras 3."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf
from horovod.tensorflow.functions import *  # noqa: F403
from horovod.tensorflow.mpi_ops import MPI_LIB

from slowmo_hvd.core.living import land_everywhere
from slowmo_hvd.tensorflow.native import native
from slowmo_hvd.tensorflow.training import trainings_of
from slowmo_hvd.tensorflow.transport import run_once

_CHUNK = 64 * 2**20  # bytes that travel at once; they need a few times as much temporary memory
_HOROVODS = (tf.uint8, tf.int8, tf.int32, tf.int64, tf.float16, tf.float32, tf.float64, tf.bool)


def broadcast_variables(
    variables: Iterable[Any],
    root_rank: int,
    process_set: Any = hvd.global_process_set,
    inplace: bool = False,
) -> Any:
    """Give every rank the root's values of these variables, eagerly or in a graph.

    It replaces ``horovod.tensorflow.broadcast_variables``, which does not take variables of Keras 3
    and pairs the ranks' variables by name. But Keras gives a layer another name on a rank that has
    built a model before, and two variables can have the same name. So here variables are paired by
    their order. All dtypes with a fixed size in bytes work, including bfloat16 and uint32.

    If the variables include those of a DistributedOptimizer that has taken steps, its ranks then
    agree on one start again: a rank may have taken no steps, for example after ``hvd.join()``. A
    collective over the process set.

    Args:
        variables: Keras variables or tf.Variables; on every rank the same number, in the same
            order, with the same shapes and dtypes.
        root_rank: the global rank whose values all ranks take.
        process_set: the ranks that take part.
        inplace: whether to write into the variables' own memory, also in a graph. This needs no
            extra memory, but works only with the dtypes that Horovod supports.

    Returns:
        None, or in a graph of TensorFlow 1 the operation that does it.
    """
    natives = [native(variable) for variable in variables]
    broadcast = _broadcast_inplace if inplace else broadcast_values
    done = broadcast(natives, root_rank, process_set)
    if not tf.executing_eagerly():
        return None if tf.inside_function() else done
    for training in trainings_of(natives):
        if training.begun:  # equal on every rank: the step count was just broadcast
            training.agree_after_broadcast()
    return None


def broadcast_values(natives: Sequence[Any], root_rank: int, process_set: Any) -> Any:
    """Give every rank the root's values of these tf.Variables, and do nothing else. A collective.

    Returns:
        None, or in a graph the operation that does it.
    """
    if not tf.executing_eagerly():
        return _broadcast_in_graph(natives, root_rank, process_set)
    horovods = [variable for variable in natives if variable.dtype in _HOROVODS]
    others = [variable for variable in natives if variable.dtype not in _HOROVODS]
    # In place, because there Horovod takes many at once, by name and without a graph. It first
    # makes a copy of a variable whose old value is still being read.
    _broadcast_inplace(horovods, root_rank, process_set)
    for index, chunk in enumerate(_chunks(others)):
        send = partial(_send, index=index, root_rank=root_rank, process_set=process_set)
        joined = _joined(chunk)
        _assign_bytes(chunk, run_once(send, joined)(joined))
    return None


def _send(wire: Any, index: int, root_rank: int, process_set: Any) -> Any:
    return hvd.broadcast(
        wire,
        root_rank,
        name=f"HorovodBroadcast.slowmo.variables.{index}",
        ignore_name_scope=True,
        process_set=process_set,
    )


def _broadcast_in_graph(natives: Sequence[Any], root_rank: int, process_set: Any) -> Any:
    done = []
    for index, chunk in enumerate(_chunks(natives)):
        wire = _joined(chunk)
        with tf.compat.v1.name_scope(None):  # where the graph makes names unique
            received = _send(wire, index, root_rank, process_set)
        done += _assign_bytes(chunk, received)
    return tf.group(*done)


def _broadcast_inplace(variables: Iterable[Any], root_rank: int, process_set: Any) -> Any:
    by_device: dict[str, dict[str, Any]] = {}
    for index, variable in enumerate(variables):
        by_device.setdefault(variable.device, {})[f"slowmo.variables.{index}"] = variable
    done = [
        MPI_LIB.horovod_broadcast_inplace_resource(
            [variable.handle for variable in named.values()],
            variable_names=list(named),
            name="HorovodBroadcastInplace",
            root_rank=root_rank,
            process_set_id=process_set.process_set_id,
        )
        for named in by_device.values()
    ]
    return None if tf.executing_eagerly() else tf.group(*done)


def join() -> Any:
    """Tell the other ranks that this one has no more batches, and wait until all ranks have joined.

    The other ranks train on. It replaces ``horovod.tensorflow.join``, whose second eager call in a
    process returns at once, because TensorFlow takes an operation without inputs for a constant.
    With an overlap, the averages that are under way land first.

    Returns:
        The rank that joined last, an int32 tensor.
    """
    if tf.inside_function():
        with tf.control_dependencies([tf.py_function(land_everywhere, [], [])]):
            return MPI_LIB.horovod_join()
    land_everywhere()
    return tf.function(MPI_LIB.horovod_join, autograph=False).get_concrete_function()()


def shared_variables(model: Any) -> list[Any]:
    """The model's variables that workers share: all except the states of its random generators.

    Keras 3 counts these states among the variables. If all workers had the same state, every worker
    would drop the same units.
    """
    own = {
        id(native(generator.state))
        for layer in model._flatten_layers()
        for generator in layer._seed_generators
    }
    return [variable for variable in model.variables if id(native(variable)) not in own]


def _chunks(variables: Iterable[Any]) -> Iterator[list[Any]]:
    """The variables in order, in lists of up to `_CHUNK` bytes, with at least one in each."""
    chunk: list[Any] = []
    total = 0
    for variable in variables:
        if chunk and total + _size(variable) > _CHUNK:
            yield chunk
            chunk, total = [], 0
        chunk.append(variable)
        total += _size(variable)
    if chunk:
        yield chunk


def _size(variable: Any) -> int:
    """The variable's size in bytes."""
    return int(variable.shape.num_elements()) * int(variable.dtype.size)


def _joined(variables: Iterable[Any]) -> Any:
    return tf.concat([_to_bytes(variable.read_value()) for variable in variables], 0)


def _assign_bytes(variables: Sequence[Any], joined: Any) -> list[Any]:
    parts = tf.split(joined, list(map(_size, variables)))
    return [
        variable.assign(_from_bytes(part, variable))
        for variable, part in zip(variables, parts, strict=True)
    ]


def _to_bytes(value: Any) -> Any:
    # A bool is one byte too, but bitcast does not take it.
    raw = tf.cast(value, tf.uint8) if value.dtype == tf.bool else tf.bitcast(value, tf.uint8)
    return tf.reshape(raw, [-1])


def _from_bytes(raw: Any, variable: Any) -> Any:
    dtype = variable.dtype
    if dtype == tf.bool:
        return tf.reshape(tf.cast(raw, tf.bool), variable.shape)
    rows = tf.reshape(raw, [-1, dtype.size]) if dtype.size > 1 else raw
    return tf.reshape(tf.bitcast(rows, dtype), variable.shape)
