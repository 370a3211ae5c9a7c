"""Horovod's elastic training: state that survives when workers are lost or arrive.

`run` and the states are replaced. Horovod's ``run`` does not survive the loss of a worker in the
middle of ``sync``, and takes an UnknownError of TensorFlow's that is not Horovod's for the end of
the training. On Keras 3 Horovod's ``TensorFlowKerasState`` fails when it asks the optimizer for its
variables. Horovod's ``TensorFlowState`` broadcasts when it is made, which a worker that arrives
later does alone, and never broadcasts in ``sync``.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import horovod.tensorflow as hvd
import horovod.tensorflow.elastic as horovod_elastic
import numpy as np
import tensorflow as tf
from horovod.common.elastic import ObjectState, State, run_fn
from horovod.common.exceptions import HorovodInternalError

from slowmo_hvd.core.elastic_job import watch_reset_callbacks
from slowmo_hvd.tensorflow.functions import (
    broadcast_values,
    shared_variables,
)
from slowmo_hvd.tensorflow.native import native
from slowmo_hvd.tensorflow.training import trainings_of

__all__ = ["TensorFlowKerasState", "TensorFlowState", "run"]

watch_reset_callbacks(State)

_COLLECTIVES = ("HorovodAllreduce", "HorovodAllgather", "HorovodBroadcast")


def run(func: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the training function, whose first argument is the elastic state.

    It replaces ``horovod.tensorflow.elastic.run``. After a worker is lost, the function is called
    again with the state that was last committed. After a worker arrives, it is called again with
    the workers' current state.
    """

    @functools.wraps(func)
    def recoverable(state: Any, *args: Any, **kwargs: Any) -> Any:
        with _lost_workers_recoverable():
            return func(state, *args, **kwargs)

    wrapped: Callable[..., Any] = run_fn(recoverable, horovod_elastic._reset)
    return wrapped


@contextlib.contextmanager
def _lost_workers_recoverable() -> Iterator[None]:
    """Turn TensorFlow's error for a failed collective into one from which Horovod recovers."""
    try:
        yield
    except tf.errors.UnknownError as error:
        if any(name in error.message for name in _COLLECTIVES):
            raise HorovodInternalError(error) from error
        raise


class _VariablesState(ObjectState):  # type: ignore[misc]
    """Variables, plain objects as attributes, and a copy of both as they were last committed."""

    def __init__(self, **kwargs: Any) -> None:
        self._values: list[Any] = []
        self._save_variables()
        super().__init__(bcast_object=hvd.broadcast_object, get_rank=hvd.rank, **kwargs)

    def _saved_variables(self) -> Sequence[Any]:
        """All variables that a restore must bring back."""
        raise NotImplementedError

    def _broadcast(self) -> None:
        """Give every rank the variables of rank 0."""
        raise NotImplementedError

    def save(self) -> None:
        """Copy variables and objects to this worker's memory."""
        self._save_variables()
        super().save()

    def restore(self) -> None:
        """Set variables and objects back to what was last saved or synchronized."""
        variables = self._saved_variables()
        for training in trainings_of(list(map(native, variables))):
            training.engine.mend()  # after this, nothing else writes into these variables
        for variable, value in zip(variables, self._values, strict=True):
            variable.assign(value)
        super().restore()

    def sync(self) -> None:
        """Give every rank the variables and objects of rank 0, and save them. A collective."""
        with _lost_workers_recoverable():
            self._broadcast()
            self._save_variables()
            super().sync()

    def _save_variables(self) -> None:
        variables = list(map(native, self._saved_variables()))
        for training in trainings_of(variables):
            training.engine.settle()
        # On the CPU, numpy() may return the variable's own memory, which the next step overwrites.
        self._values = [np.array(variable.numpy(), copy=True) for variable in variables]


class TensorFlowKerasState(_VariablesState):
    """A Keras model and its optimizer in elastic training, including the slow state.

    It replaces ``horovod.tensorflow.elastic.TensorFlowKerasState``. The states of the model's
    random generators are saved and restored, but ``sync`` leaves them to each worker.

    Args:
        model: a built Keras model.
        optimizer: its optimizer, if the model is not compiled with it. It is built if it is not
            built yet.
        backend: not used; Horovod needs it for TensorFlow 1.
        **kwargs: other objects to save and synchronize, as attributes of this object.

    Raises:
        ValueError: the model is not built, or there is no optimizer.
    """

    def __init__(
        self, model: Any, optimizer: Any = None, backend: Any = None, **kwargs: Any
    ) -> None:
        if not model.built:
            raise ValueError(
                "Model must be built first, as its variables are what is saved: begin it with "
                "keras.Input(shape), or run `model.build(input_shape)`"
            )
        self.model = model
        self.optimizer: Any = getattr(model, "optimizer", None) if optimizer is None else optimizer
        self.backend = backend
        if self.optimizer is None:
            raise ValueError(
                "the model is not compiled with an optimizer, and none is given: compile it, or "
                "pass optimizer="
            )
        if not self.optimizer.built:
            self.optimizer.build(model.trainable_variables)
        super().__init__(**kwargs)

    def _saved_variables(self) -> Sequence[Any]:
        return [*self.model.variables, *self.optimizer.variables]

    def _broadcast(self) -> None:
        variables = [*shared_variables(self.model), *self.optimizer.variables]
        broadcast_values(list(map(native, variables)), 0, hvd.global_process_set)
        if hasattr(self.optimizer, "after_broadcast"):  # SlowMo's
            self.optimizer.after_broadcast()


class TensorFlowState(_VariablesState):
    """Variables in elastic training.

    It replaces ``horovod.tensorflow.elastic.TensorFlowState``.

    Args:
        variables: Keras variables or tf.Variables. With TensorFlow 2 there is no default.
        session: must be None; Horovod needs it for TensorFlow 1.
        **kwargs: other objects to save and synchronize, as attributes of this object.

    Raises:
        ValueError: no variables are given, or a session is given.
    """

    def __init__(
        self, variables: Iterable[Any] | None = None, session: Any = None, **kwargs: Any
    ) -> None:
        if session is not None:
            raise ValueError(
                "TensorFlowState takes no session: sessions are TensorFlow 1's, and Keras 3 needs "
                "TensorFlow 2; leave it out"
            )
        if variables is None:
            raise ValueError(
                "TensorFlowState needs the variables to save: TensorFlow 2 keeps no list of them; "
                "pass variables=[...]"
            )
        self.variables = list(variables)
        super().__init__(**kwargs)

    def _saved_variables(self) -> Sequence[Any]:
        return self.variables

    def _broadcast(self) -> None:
        natives = list(map(native, self.variables))
        broadcast_values(natives, 0, hvd.global_process_set)
        for training in trainings_of(natives):
            training.agree_after_broadcast()
