"""Python in a graph: it takes over while the graph waits, and holds none of TensorFlow's threads.

A ``tf.py_function`` that waited would hold one. Where there is no other, as on a machine of one
core, the collectives that it waits for would never run. So one starts the work in a thread, the
graph waits in a queue, which holds nothing, and a second raises what the work has raised.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from slowmo_hvd.core.flight import UnderWay


class InGraph:
    """Work for graphs, one piece at a time.

    It keeps nothing alive: TensorFlow keeps for good what a ``tf.py_function`` calls.

    Args:
        check: a method that may refuse the work, before it has begun. It is called with the values
            of the arguments, as eager tensors.
        work: the method that does it, called with the same.
    """

    def __init__(self, check: Callable[..., None], work: Callable[..., None]) -> None:
        self._check = weakref.WeakMethod(check)
        self._work = weakref.WeakMethod(work)
        self._running: UnderWay | None = None
        with tf.init_scope():
            self._done = tf.queue.FIFOQueue(1, [tf.bool], [()])

    def add(self, arguments: Sequence[Any]) -> None:
        """Add the work to the graph that is being made, within `in_order`.

        Args:
            arguments: tensors, for the methods.
        """
        begun = _call(self._begin, arguments)
        with tf.control_dependencies([begun]):
            done = self._done.dequeue()
        _call(self._end, [done])

    def _begin(self, *arguments: Any) -> None:
        if self._running is not None:
            # An error elsewhere has ended the step that began it, and nobody has waited for it.
            with contextlib.suppress(Exception):
                self._running.result()
            if int(self._done.size()) > 0:
                self._done.dequeue()
            self._running = None
        _alive(self._check)(*arguments)
        self._running = UnderWay(partial(self._run, _alive(self._work), *arguments), "sync")

    def _run(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        finally:
            self._done.enqueue(True)

    def _end(self, *_: Any) -> None:
        running, self._running = self._running, None
        assert running is not None  # _begin has run
        running.result()


@contextlib.contextmanager
def in_order(variables: Sequence[Any]) -> Iterator[None]:
    """Have the graph order what is made inside with all else that uses these tf.Variables.

    TensorFlow orders operations by the handles that they are given, and takes one that does nothing
    but pass them on for one that writes. So there is such a one before and one after. The handles
    could go into the branch that uses them; but to make a branch of hundreds takes longer.
    """
    if tf.executing_eagerly():
        yield
        return
    by_device: dict[str, list[Any]] = {}  # an operation has but one
    for variable in variables:
        by_device.setdefault(variable.device, []).append(variable.handle)
    graph = tf.compat.v1.get_default_graph()
    before = [tf.raw_ops.IdentityN(input=handles)[0].op for handles in by_device.values()]
    count = len(graph.get_operations())
    with tf.control_dependencies(before):
        yield
    with tf.control_dependencies(graph.get_operations()[count:]):
        for handles in by_device.values():
            tf.raw_ops.IdentityN(input=handles)


def _call(method: Callable[..., None], arguments: Sequence[Any]) -> Any:
    weak = weakref.WeakMethod(method)
    return tf.py_function(lambda *values: _alive(weak)(*values), arguments, [])


def _alive(method: "weakref.WeakMethod[Any]") -> Callable[..., None]:
    found: Callable[..., None] | None = method()
    if found is None:
        raise RuntimeError(
            "the DistributedOptimizer of this graph is gone: keep a reference to it for as long as "
            "its training step runs"
        )
    return found
