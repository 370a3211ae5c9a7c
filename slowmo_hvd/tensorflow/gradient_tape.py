"""``hvd.DistributedGradientTape``, so that Horovod's scripts run: gradients stay local."""

from functools import partial
from typing import Any

import tensorflow as tf

from slowmo_hvd.tensorflow.arguments import refuse_local
from slowmo_hvd.tensorflow.training import Training


def DistributedGradientTape(gradtape: tf.GradientTape, *args: Any, **kwargs: Any) -> Any:  # noqa: N802
    """The tape itself, in the place of ``horovod.tensorflow.DistributedGradientTape``.

    Horovod's averages gradients in every step. Under SlowMo each worker steps on its own, and the
    optimizer brings the workers together.

    Args:
        gradtape: the tape.
        args: Horovod's further arguments, about the sending of gradients: without effect.
        kwargs: likewise.

    Raises:
        TypeError: ``gradtape`` is no tape.
        ValueError: there is no DistributedOptimizer, so that nothing would bring the workers
            together.
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
    """As `DistributedGradientTape`; layers of one worker alone are refused.

    Raises:
        ValueError: ``local_layers`` are given. SlowMo averages all variables of its optimizer.
    """
    refuse_local("local_layers", kwargs.pop("local_layers", None))
    gradtape = DistributedGradientTape(gradtape, *args, **kwargs)
    gradtape.register_local_source = partial(refuse_local, "what register_local_source() is given")
    return gradtape
