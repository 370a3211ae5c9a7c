"""``hvd.DistributedGradientTape`` for Horovod's scripts. Gradients stay local."""

from functools import partial
from typing import Any

import tensorflow as tf

from slowmo_hvd.tensorflow.arguments import refuse_local
from slowmo_hvd.tensorflow.training import Training


def DistributedGradientTape(gradtape: tf.GradientTape, *args: Any, **kwargs: Any) -> Any:  # noqa: N802
    """Return the tape itself. This replaces ``horovod.tensorflow.DistributedGradientTape``.

    Horovod's tape averages gradients in every step. With SlowMo each worker takes its own steps,
    and the optimizer averages the workers.

    Args:
        gradtape: the tape.
        args: Horovod's other arguments, about how to send gradients. They have no effect.
        kwargs: the same.

    Raises:
        TypeError: ``gradtape`` is not a tape.
        ValueError: there is no DistributedOptimizer, so nothing would average the workers.
    """
    if not isinstance(gradtape, tf.GradientTape):
        raise TypeError(f"gradtape must be a tf.GradientTape, got {gradtape!r}")
    if not Training.any_made:
        raise ValueError(
            "DistributedGradientTape leaves gradients local under SlowMo, and there is no "
            "DistributedOptimizer that would average the workers: wrap the optimizer too, "
            "optimizer = hvd.DistributedOptimizer(optimizer)"
        )
    return gradtape


def PartialDistributedGradientTape(  # noqa: N802
    gradtape: tf.GradientTape, *args: Any, **kwargs: Any
) -> Any:
    """`DistributedGradientTape`, which refuses layers that belong to one worker alone.

    Raises:
        ValueError: ``local_layers`` are given. SlowMo averages all variables of its optimizer.
    """
    refuse_local("local_layers", kwargs.pop("local_layers", None))
    gradtape = DistributedGradientTape(gradtape, *args, **kwargs)
    gradtape.register_local_source = partial(refuse_local, "what register_local_source() is given")
    return gradtape
