"""``hvd.load_model``: load a saved model, with SlowMo around its optimizer."""

from pathlib import Path
from typing import Any

import horovod.tensorflow as hvd
import keras

from slowmo_hvd.tensorflow.optimizer import DistributedOptimizer


def load_model(
    filepath: str | Path,
    custom_optimizers: list[type] | None = None,
    custom_objects: dict[str, Any] | None = None,
    compression: Any = hvd.Compression.none,
    legacy_opts: bool = False,
    **slowmo: Any,
) -> keras.Model:
    """Load a Keras model with a DistributedOptimizer that goes on where it was saved.

    It replaces ``horovod.tensorflow.keras.load_model``. A model that was saved with a
    DistributedOptimizer brings back its settings, the anchor, the slow momentum and the position in
    the window; ``keras.saving.load_model`` can load it too. If a model was saved with another
    optimizer, a new DistributedOptimizer is put around that one, and its slow state starts from
    scratch.

    Args:
        filepath: the file that ``model.save`` wrote.
        custom_optimizers: optimizer classes that Keras does not know.
        custom_objects: other classes and functions that Keras does not know, by name.
        compression: an argument of DistributedOptimizer, for a model that was saved without one.
        legacy_opts: must be False; Keras 3 has no legacy optimizers.
        slowmo: more arguments of DistributedOptimizer, for a model that was saved without one.

    Raises:
        ValueError: the file cannot be loaded, or ``legacy_opts`` is True.
    """
    if legacy_opts:
        raise ValueError("legacy_opts=True: Keras 3 has no legacy optimizers; leave it at False")
    objects = {cls.__name__: cls for cls in custom_optimizers or ()} | (custom_objects or {})
    model = keras.saving.load_model(filepath, custom_objects=objects)
    inner = model.optimizer
    if inner is None or isinstance(inner, DistributedOptimizer):
        return model
    outer = DistributedOptimizer(inner, compression=compression, **slowmo)
    if inner.built:
        outer.build(model.trainable_variables)
    compiled = model.get_compile_config()
    del compiled["optimizer"]
    others = keras.saving.deserialize_keras_object(compiled, custom_objects=objects)
    model.compile(optimizer=outer, **others)
    return model
