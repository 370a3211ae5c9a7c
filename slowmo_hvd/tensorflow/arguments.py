"""Checks of DistributedOptimizer's arguments that need Keras or TensorFlow."""

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from slowmo_hvd.core.checks import check_integer
from slowmo_hvd.tensorflow.leaves import leaves
from slowmo_hvd.tensorflow.native import path_of
from slowmo_hvd.tensorflow.settings import OF_EVERY_OPTIMIZER


def check_inner(optimizer: Any, distributed: type) -> None:
    """Raise unless ``optimizer`` is a Keras 3 optimizer that is not ``distributed`` yet.

    Raises:
        TypeError: it is not a Keras 3 optimizer.
        ValueError: it is distributed already.
    """
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            f"optimizer must be a keras.optimizers.Optimizer of Keras 3, got {optimizer!r}"
        )
    for inside in (optimizer, *leaves(optimizer)):
        if isinstance(inside, distributed) or hasattr(inside, "_allreduce_grads"):
            raise ValueError(
                "optimizer is a DistributedOptimizer already; give the optimizer inside it, since "
                "SlowMo takes the place of Horovod's gradient averaging"
            )


def refuse_arguments_of_the_inner(kwargs: dict[str, Any]) -> None:
    """Raise for keyword arguments that the outer optimizer does not have.

    Raises:
        ValueError: an argument that every Keras optimizer has.
        TypeError: any other argument.
    """
    for name, value in kwargs.items():
        if name == "use_locking" and value is False:  # of horovod.tensorflow, from TensorFlow 1
            continue
        if name == "learning_rate" or name in OF_EVERY_OPTIMIZER:
            raise ValueError(
                f"DistributedOptimizer does not support `{name}`. Instead, set `{name}` on the "
                "inner optimizer."
            )
        raise TypeError(f"DistributedOptimizer() got an unexpected keyword argument {name!r}")


def refuse_local(what: str, given: Any) -> None:
    """Raise ValueError if something is ``given`` that should remain each worker's own."""
    nothing = given is None or (isinstance(given, list | tuple | set) and not given)
    if not nothing:
        raise ValueError(
            f"{what} cannot be kept out of SlowMo's average here: give local variables an "
            "optimizer of their own that is not distributed"
        )


def check_samples(samples: Any) -> Any:
    """A number of samples as an int, or in a graph as the tensor that it is.

    Raises:
        TypeError, ValueError: it is not an int >= 0. For a tensor in a graph, only the type is
            checked.
    """
    if tf.is_tensor(samples):
        if not samples.dtype.is_integer or samples.shape.rank != 0:
            raise TypeError(f"samples must be an int >= 0, or a tensor of one, got {samples!r}")
        if not hasattr(samples, "numpy"):
            return samples
        samples = int(samples)
    return check_integer("samples", samples, least=0)


def check_trained(grads: Iterable[Any], variables: Iterable[Any]) -> None:
    """Raise ValueError if a frozen variable has a gradient: it would not be averaged."""
    for grad, variable in zip(grads, variables, strict=False):  # Keras compares the lengths
        if grad is not None and not variable.trainable:
            raise ValueError(
                f"{path_of(variable)} has a gradient and trainable=False: give the gradients of "
                "model.trainable_variables as they are now, or set trainable=True"
            )


def check_device(device: Any) -> None:
    """Raise TypeError unless ``device`` is a str."""
    if not isinstance(device, str):
        raise TypeError(
            f"device_dense must be the name of a device, such as '/cpu:0', or '', got {device!r}"
        )
