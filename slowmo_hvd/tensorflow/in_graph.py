"""Python in a graph: it takes over while the graph waits, and holds none of TensorFlow's threads.

A ``tf.py_function`` that waited would hold one. Where there is no other, as on a machine of one
core, the collectives that it waits for would never run. So one starts the work in a thread, the
graph waits in a queue, which holds nothing, and a second raises what the work has raised.
"""

import contextlib
import weakref
from collections.abc import Callable, Sequence
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

    def add(self, arguments: Sequence[Any], variables: Sequence[Any]) -> None:
        """Add the work to the graph that is being made.

        Args:
            arguments: tensors, for the methods.
            variables: the tf.Variables that the work reads or writes. By their handles TensorFlow
                orders it with all else that uses them, also in loops of the graph.
        """
        handles = [variable.handle for variable in variables]
        count = len(arguments)
        begun = _call(self._begin, [tf.constant(count), *arguments, *handles])
        with tf.control_dependencies([begun]):
            done = self._done.dequeue()
        _call(self._end, [done, *handles])

    def _begin(self, count: Any, *values: Any) -> None:
        if self._running is not None:
            # An error elsewhere has ended the step that began it, and nobody has waited for it.
            with contextlib.suppress(Exception):
                self._running.result()
            if int(self._done.size()) > 0:
                self._done.dequeue()
            self._running = None
        arguments = values[: int(count)]
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
