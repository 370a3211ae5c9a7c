"""Horovod's functions on variables, for those of Keras 3 too."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf
from horovod.tensorflow.functions import *  # noqa: F403
from horovod.tensorflow.mpi_ops import MPI_LIB

from slowmo_hvd.tensorflow.exchange import run_now
from slowmo_hvd.tensorflow.outer_loop import loops_of
from slowmo_hvd.tensorflow.slow_model import native

_CHUNK = 64 * 2**20  # bytes that travel at once; a few times as much is their temporary memory


def broadcast_variables(
    variables: Iterable[Any],
    root_rank: int,
    process_set: Any = hvd.global_process_set,
    inplace: bool = False,
) -> None:
    """Give every rank the root's values of these variables, eagerly or in a ``tf.function``.

    In the place of ``horovod.tensorflow.broadcast_variables``, which takes no variables of
    Keras 3. It also pairs the ranks' variables by name, though a layer that Keras names gets
    another name on a rank that has built a model before, and two may have one name: here they
    pair by their order. And it takes all dtypes that have bytes, bfloat16 and uint32 among them.
    A DistributedOptimizer among whose variables these are, and which has taken steps, agrees on
    one start anew: a rank may have taken none, after ``hvd.join()`` say. A collective over the
    process set.

    Args:
        variables: Keras variables or tf.Variables: on every rank as many, in the same order, of
            the same shapes and dtypes.
        root_rank: the global rank whose values all take.
        process_set: the ranks that take part.
        inplace: write into the variables' own memory, which needs no more of it, but takes only
            Horovod's own dtypes.
    """
    natives = [native(variable) for variable in variables]
    if inplace:
        _broadcast_inplace(natives, root_rank, process_set)
    else:
        broadcast_values(natives, root_rank, process_set)
    if not tf.inside_function():
        for loop in loops_of(natives):
            if loop.begun:  # rank-equal, since the count of steps has just been broadcast
                loop.agree_after_broadcast()


def broadcast_values(natives: Sequence[Any], root_rank: int, process_set: Any) -> None:
    """Give every rank the root's values of these tf.Variables, and no more. A collective."""
    for index, chunk in enumerate(_chunks(natives)):
        wire = tf.concat([_to_bytes(variable.read_value()) for variable in chunk], 0)
        received = _broadcast(wire, root_rank, index, process_set)
        for variable, part in zip(chunk, tf.split(received, list(map(_size, chunk))), strict=True):
            variable.assign(_from_bytes(part, variable))


def _broadcast_inplace(variables: Iterable[Any], root_rank: int, process_set: Any) -> None:
    by_device: dict[str, dict[str, Any]] = {}
    for index, variable in enumerate(variables):
        by_device.setdefault(variable.device, {})[f"slowmo.variables.{index}"] = variable
    for named in by_device.values():
        MPI_LIB.horovod_broadcast_inplace_resource(
            [variable.handle for variable in named.values()],
            variable_names=list(named),
            name="HorovodBroadcastInplace",
            root_rank=root_rank,
            process_set_id=process_set.process_set_id,
        )


def join() -> Any:
    """Say that this rank has no more batches, and wait until all ranks do; others train on.

    In the place of ``horovod.tensorflow.join``, whose second call in a process returns at once
    when it is made eagerly: TensorFlow takes an operation without inputs for a constant.

    Returns:
        The rank that joined last, an int32 tensor.
    """
    if tf.inside_function():
        return MPI_LIB.horovod_join()
    return tf.function(MPI_LIB.horovod_join, autograph=False).get_concrete_function()()


def shared_variables(model: Any) -> list[Any]:
    """The model's variables that workers share: all but the states of its random generators.

    Keras 3 counts those among the variables. With one state for all, every worker would drop the
    same units.
    """
    own = {
        id(native(generator.state))
        for layer in model._flatten_layers()
        for generator in layer._seed_generators
    }
    return [variable for variable in model.variables if id(native(variable)) not in own]


def _chunks(variables: Iterable[Any]) -> Iterator[list[Any]]:
    """The variables in order, as many at once as have `_CHUNK` bytes, but always one."""
    chunk: list[Any] = []
    for variable in variables:
        if chunk and sum(map(_size, chunk)) + _size(variable) > _CHUNK:
            yield chunk
            chunk = []
        chunk.append(variable)
    if chunk:
        yield chunk


def _size(variable: Any) -> int:
    """Bytes."""
    return int(variable.shape.num_elements()) * int(variable.dtype.size)


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


def _broadcast(wire: Any, root_rank: int, index: int, process_set: Any) -> Any:
    def send(tensor: Any) -> Any:
        return hvd.broadcast(
            tensor,
            root_rank,
            name=f"HorovodBroadcast.slowmo.variables.{index}",
            ignore_name_scope=True,
            process_set=process_set,
        )

    if not tf.executing_eagerly():
        with tf.compat.v1.name_scope(None):  # where the graph keeps names apart
            return send(wire)
    return run_now(send, wire)
