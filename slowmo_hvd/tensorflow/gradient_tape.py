"""``hvd.DistributedGradientTape`` for Horovod's scripts. Gradients stay local."""

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import horovod.tensorflow as horovod
import tensorflow as tf

from slowmo_hvd.tensorflow.arguments import refuse_local
from slowmo_hvd.tensorflow.context import as_written
from slowmo_hvd.tensorflow.training import Training


@as_written
def DistributedGradientTape(gradtape: tf.GradientTape, *args: Any, **kwargs: Any) -> Any:  # noqa: N802
    """Return the tape itself. This replaces ``horovod.tensorflow.DistributedGradientTape``.

    Horovod's tape averages gradients in every step. With SlowMo each worker takes its own steps,
    and the optimizer averages the workers.

    Args:
        gradtape: the tape.
        args: Horovod's other arguments, about how to send gradients, at their defaults.
        kwargs: the same.

    Raises:
        TypeError: ``gradtape`` is not a tape, or Horovod's tape has no such argument.
        ValueError: an argument is not at its default, or there is no DistributedOptimizer, so that
            nothing would average the workers.
    """
    _refuse_arguments(horovod.DistributedGradientTape, gradtape, *args, **kwargs)
    if not isinstance(gradtape, tf.GradientTape):
        raise TypeError(f"gradtape must be a tf.GradientTape, got {gradtape!r}")
    if not Training.any_made:
        raise ValueError(
            "DistributedGradientTape leaves gradients local under SlowMo, and there is no "
            "DistributedOptimizer that would average the workers: wrap the optimizer too, "
            "optimizer = hvd.DistributedOptimizer(optimizer)"
        )
    return gradtape


@as_written
def PartialDistributedGradientTape(  # noqa: N802
    gradtape: tf.GradientTape, *args: Any, **kwargs: Any
) -> Any:
    """`DistributedGradientTape`, which refuses layers that belong to one worker alone.

    Raises:
        ValueError: ``local_layers`` are given. SlowMo averages all variables of its optimizer.
    """
    _refuse_arguments(horovod.PartialDistributedGradientTape, gradtape, *args, **kwargs)
    gradtape = DistributedGradientTape(gradtape)
    gradtape.register_local_source = partial(refuse_local, "what register_local_source() is given")
    return gradtape


_signature = cache(inspect.signature)


def _refuse_arguments(of: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Raise unless all arguments of this tape of Horovod's are at their defaults, but the first.

    SlowMo's tape sends nothing, so they would have no effect.
    """
    _, *given = _signature(of).bind(*args, **kwargs).arguments.items()
    for name, value in given:
        default = _signature(of).parameters[name].default
        if name == "local_layers":
            refuse_local(name, value)
        elif value is not default and value != default:
            raise ValueError(
                f"{name}={value!r} has no effect on a tape, which sends nothing under SlowMo: "
                f"leave it out here, and give {name} to DistributedOptimizer"
            )
