"""BroadcastGlobalVariablesCallback: one start for all ranks of a ``fit``."""

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from slowmo_hvd.tensorflow.functions import broadcast_variables, shared_variables
from slowmo_hvd.tensorflow.keras.callbacks.gathering import gather
from slowmo_hvd.tensorflow.native import native


class BroadcastGlobalVariablesCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Gives every rank the root's model and optimizer once, so that all train from one start.

    If the model is built on every rank, this happens at the beginning of ``fit``. Otherwise it
    happens after the first batch, because before it a model without an input shape has no
    variables. The states of the model's random generators remain each rank's own. It uses
    collectives over all ranks.

    Args:
        root_rank: the rank whose values all ranks take, for example from a checkpoint.
        device: the device on which to broadcast; with "" Horovod chooses.
        local_variables: a variable, or several, that remain each rank's own.

    Raises:
        ValueError: ``local_variables`` has something that is not a variable. In ``fit``, on every
            rank: the ranks' variables differ in number, shape or dtype.
    """

    def __init__(
        self, root_rank: int, device: str = "", local_variables: Iterable[Any] | None = None
    ) -> None:
        super().__init__()
        self.root_rank = root_rank
        self.device = device
        self.broadcast_done = False
        self._local: set[Any] = set()
        if isinstance(local_variables, tf.Variable | keras.Variable):
            local_variables = [local_variables]
        for variable in local_variables or []:
            self.register_local_var(variable)

    def register_local_var(self, var: Any) -> None:
        """Keep this variable of the model or the optimizer each rank's own."""
        if not isinstance(var, tf.Variable | keras.Variable):
            raise ValueError(
                f"local variables must be Keras variables or tf.Variables, got {var!r}"
            )
        self._local.add(native(var).ref())

    def on_train_begin(self, logs: Any = None) -> None:
        """Broadcast, if the model is built on all ranks."""
        if self.broadcast_done:
            return
        built = all(layer.built for layer in self.model._flatten_layers())
        # A rank with a loaded model is ready before one whose model waits for its first batch.
        if all(gather(built, "built")):
            self._broadcast()

    def on_batch_end(self, batch: int, logs: Any = None) -> None:
        """Broadcast, if that was not possible before."""
        if not self.broadcast_done:
            self._broadcast()

    def _broadcast(self) -> None:
        optimizer = self.model.optimizer
        # Keras would build it in the first batch, but the root's may be built, from a checkpoint.
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        variables = [
            native(variable)
            for variable in (*shared_variables(self.model), *optimizer.variables)
            if native(variable).ref() not in self._local
        ]
        _check_alike(variables)
        with tf.device(self.device):
            broadcast_variables(variables, self.root_rank)
        self.broadcast_done = True


def _check_alike(variables: list[Any]) -> None:
    """Raise the same ValueError on every rank unless all ranks have variables of the same kinds."""
    kinds = [f"{variable.dtype.name}{variable.shape.as_list()}" for variable in variables]
    first, *others = gather(kinds, "variables")
    for rank, theirs in enumerate(others, 1):
        if theirs == first:
            continue
        cure = "use the same model and optimizer on every rank, with the same local variables"
        if len(theirs) != len(first):
            raise ValueError(
                f"the ranks differ in the number of variables of model and optimizer: {len(first)} "
                f"on rank 0, {len(theirs)} on rank {rank}; {cure}"
            )
        position = next(i for i, kind in enumerate(first) if kind != theirs[i])
        raise ValueError(
            f"the ranks differ in variable {position} of model and optimizer: {first[position]} on "
            f"rank 0, {theirs[position]} on rank {rank}; {cure}"
        )
