"""What a model counts as it trains, beside its weights: BatchNormalization's moving statistics."""

from typing import Any

from slowmo_hvd.tensorflow.exchange import average_now
from slowmo_hvd.tensorflow.slow_model import native


def average_statistics(model: Any, *, name: str, process_set: Any) -> int:
    """Make every moving statistic of the model its mean over the workers.

    A statistic is a float variable that its layer added as not trainable: moving means and
    variances are, the weights of a frozen layer are not. Integers, and with them the states of
    random generators, stay each worker's own. A collective over the process set, unless there is
    no statistic; a rank that has joined (``hvd.join()``) counts for nothing, and neither does a
    statistic that is not finite, which becomes the others' mean.

    Args:
        model: a Keras model, with equal layers on every rank.
        name: the collective's name, in use for nothing else.
        process_set: the ranks that take part, this one among them.

    Returns:
        The bytes handed to allreduce.
    """
    statistics = {}  # each once: a layer can be in a model twice
    for layer in model._flatten_layers():
        for variable in map(native, layer._non_trainable_variables):
            if variable.dtype.is_floating:
                statistics[id(variable)] = variable
    return average_now(list(statistics.values()), name=name, process_set=process_set)
