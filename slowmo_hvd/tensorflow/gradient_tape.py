"""``hvd.DistributedGradientTape`` for Horovod's scripts. Gradients stay local."""

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import horovod.tensorflow as horovod
import tensorflow as tf

from slowmo_hvd.core.arguments import not_at_default
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
    _check(horovod.DistributedGradientTape, gradtape, *args, **kwargs)
    return gradtape


@as_written
def PartialDistributedGradientTape(  # noqa: N802
    gradtape: tf.GradientTape, *args: Any, **kwargs: Any
) -> Any:
    """`DistributedGradientTape`, which refuses layers that belong to one worker alone.

    Raises:
        ValueError: ``local_layers`` are given. SlowMo averages all variables of its optimizer.
    """
    _check(horovod.PartialDistributedGradientTape, gradtape, *args, **kwargs)
    gradtape.register_local_source = partial(refuse_local, "what register_local_source() is given")
    return gradtape


_signature = cache(inspect.signature)


def _check(of: Callable[..., Any], gradtape: Any, *args: Any, **kwargs: Any) -> None:
    """Raise unless this tape of Horovod's could be taken over, with all other arguments at default.

    SlowMo's tape sends nothing, so they would have no effect.
    """
    signature = _signature(of)
    _, *arguments = signature.bind(gradtape, *args, **kwargs).arguments.items()
    given = {name: (value, signature.parameters[name].default) for name, value in arguments}
    for name, value in not_at_default(given).items():
        if name == "local_layers":
            refuse_local(name, value)
            continue
        raise ValueError(
            f"{name}={value!r} has no effect on a tape, which sends nothing under SlowMo: leave "
            f"it out here, and give {name} to DistributedOptimizer"
        )
    if not isinstance(gradtape, tf.GradientTape):
        raise TypeError(f"gradtape must be a tf.GradientTape, got {gradtape!r}")
    if not Training.any_made:
        raise ValueError(
            "DistributedGradientTape leaves gradients local under SlowMo, and there is no "
            "DistributedOptimizer that would average the workers: wrap the optimizer too, "
            "optimizer = hvd.DistributedOptimizer(optimizer)"
        )
