"""The arguments of `DistributedOptimizer` as Keras saves them in a model's file, and back."""

from typing import Any

import horovod.tensorflow as hvd
import keras
from horovod.common import process_sets

from slowmo_hvd.core import schedules
from slowmo_hvd.core.agreement import class_name
from slowmo_hvd.core.arguments import check_process_set
from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.state import STATE_VERSION, migrated_config
from slowmo_hvd.tensorflow.leaves import leaves

_OF_WINDOWS = ("sync_period", "slow_lr", "slow_momentum")  # these can be functions


def to_saved(
    inner: keras.optimizers.Optimizer, compression: Any, process_set: Any, config: SlowMoConfig
) -> dict[str, Any]:
    """The arguments that Keras cannot write as they are."""
    everyone = process_set is hvd.global_process_set
    return {
        "inner_optimizer": keras.saving.serialize_keras_object(inner),
        "compression": _name_of_compression(compression),
        "process_set": None if everyone else list(process_set.ranks),
        **config.asdict(),
        **{name: _to_config(getattr(config, name)) for name in _OF_WINDOWS},
    }


def from_saved(
    saved: dict[str, Any], custom_objects: dict[str, Any] | None
) -> tuple[keras.optimizers.Optimizer, dict[str, Any]]:
    """The inner optimizer, and the other arguments; those of other versions too.

    Raises:
        ValueError, TypeError: as in ``DistributedOptimizer.from_config``.
    """
    saved = dict(saved)
    inner = keras.saving.deserialize_keras_object(
        saved.pop("inner_optimizer"), custom_objects=custom_objects
    )
    arguments = migrated_config(saved, STATE_VERSION, type(leaves(inner)[0]).__name__)
    return inner, arguments | {
        "compression": _compression_by_name(arguments["compression"]),
        "process_set": _process_set_by_ranks(arguments["process_set"]),
        **{name: _from_config(arguments[name], custom_objects) for name in _OF_WINDOWS},
    }


def _to_config(setting: Any) -> Any:
    """A schedule as Keras saves it: ours as builtins, a function by its registered name."""
    ours = schedules.to_config(setting)
    return keras.saving.serialize_keras_object(ours) if callable(ours) else ours


def _from_config(setting: Any, custom_objects: dict[str, Any] | None) -> Any:
    found = schedules.from_config(setting)
    if not isinstance(found, dict):
        return found
    return keras.saving.deserialize_keras_object(found, custom_objects=custom_objects)


def _name_of_compression(compression: Any) -> str:
    """The name by which `_compression_by_name` finds it again."""
    names = ("none", "fp16")
    known = (name for name in names if getattr(hvd.Compression, name) is compression)
    return next(known, class_name(compression))


def _compression_by_name(name: str) -> Any:
    """The compressor that was saved, or ValueError for one that is not Horovod's."""
    if name not in ("none", "fp16"):
        raise ValueError(
            f"the optimizer was saved with compression {name}, which is not Horovod's: load the "
            "model with compile=False, and compile it with a new DistributedOptimizer"
        )
    return getattr(hvd.Compression, name)


def _process_set_by_ranks(ranks: list[int] | None) -> Any:
    """The process set that was saved, or ValueError if Horovod has none with these ranks."""
    if ranks is None:
        return hvd.global_process_set
    known = process_sets._basics._get_process_set_ids_and_ranks()
    for number, its_ranks in known.items():
        if list(its_ranks) == ranks:
            process_set = hvd.ProcessSet(ranks)
            process_set.process_set_id = number
            check_process_set(process_set, hvd)
            return process_set
    raise ValueError(
        f"the optimizer was saved for the process set of ranks {ranks}, which is not known to "
        "Horovod here; call hvd.add_process_set(...) on every rank before loading"
    )
