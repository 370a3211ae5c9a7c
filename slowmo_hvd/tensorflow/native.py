"""Keras' variables, and the ``tf.Variable`` in each."""

from typing import Any

import tensorflow as tf


def native(variable: Any) -> Any:
    """The ``tf.Variable`` of a Keras variable, or the ``tf.Variable`` itself."""
    return variable if isinstance(variable, tf.Variable) else variable.value


def path_of(variable: Any) -> str:
    """The variable's name with its layers' names, in a form for the optimizer's own variables."""
    path: str = getattr(variable, "path", variable.name)
    return path.replace("/", "_").replace(":", "_")
