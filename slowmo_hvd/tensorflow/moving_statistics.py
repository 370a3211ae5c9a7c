"""What a model counts while it trains, besides its weights: moving statistics."""

from typing import Any

from slowmo_hvd.tensorflow.native import native


def statistics_of(model: Any) -> list[Any]:
    """The model's moving statistics (BatchNormalization's), as tf.Variables.

    A statistic is a float variable that its layer added as not trainable. Moving means and
    variances are statistics; the weights of a frozen layer are not. Integers, including the states
    of random generators, stay each worker's own.

    Args:
        model: a Keras model, with equal layers on every rank.
    """
    statistics = {}  # each once: a layer can be in a model twice
    for layer in model._flatten_layers():
        for variable in map(native, layer._non_trainable_variables):
            if variable.dtype.is_floating:
                statistics[id(variable)] = variable
    return list(statistics.values())
