"""Python in a graph: it runs while the graph waits, and holds none of TensorFlow's threads.

A ``tf.py_function`` that waited would hold a thread. If there is no other, as on a machine with one
core, the collectives that it waits for would never run. So one ``tf.py_function`` starts the work
in a thread, the graph waits in a queue, which holds no thread, and a second one raises the errors
of the work.
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

    It keeps nothing alive: TensorFlow never frees what a ``tf.py_function`` calls.

    Args:
        check: a method that can refuse the work before it begins. It is called with the values of
            the arguments, as eager tensors.
        work: the method that does the work, called with the same values.
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
            # An error elsewhere ended the step that began this work, and nothing has waited for it.
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
    """Make the graph order what is made inside with all other uses of these tf.Variables.

    TensorFlow orders operations by their handles, and treats an operation that only passes handles
    on as one that writes. So there is such an operation before and one after. The handles could be
    inputs of the branch that uses them, but a branch with hundreds of inputs takes longer to make.
    """
    if tf.executing_eagerly():
        yield
        return
    by_device: dict[str, list[Any]] = {}  # an operation has only one
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
