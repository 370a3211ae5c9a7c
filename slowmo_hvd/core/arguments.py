"""Horovod's own arguments to DistributedOptimizer: kept if they have a meaning, or refused.

SlowMo sends no gradients, so Horovod's options for sending gradients have no meaning here. Such an
argument is accepted at its default value, because scripts spell defaults out. Any other value is
refused: if it were ignored, the training would silently differ from what was asked for.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from slowmo_hvd.core.checks import check_integer
from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.launchers import alone_among
from slowmo_hvd.core.transport import ANOTHER_FRAMEWORK
from slowmo_hvd.core.warn import warn

_WHY = {
    "gradient_predivide_factor": "it splits the division of averaged gradients",
    "num_groups": "it groups gradients for sending",
    "groups": "it groups gradients for sending",
    "device_sparse": "it places sparse gradients for sending",
    "scale_local_gradients": "it matches the scale of gradients that are not sent to averaged ones",
}


def not_at_default(given: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """The arguments that are not at their defaults.

    Args:
        given: for each argument's name, the given value and the default.
    """
    return {
        name: value
        for name, (value, default) in given.items()
        if value is not default and value != default
    }


def refuse_gradient_arguments(**given: tuple[Any, Any]) -> None:
    """Raise ValueError for the first argument that is not at its default.

    Args:
        given: for each argument's name, the given value and the default.
    """
    for name, value in not_at_default(given).items():
        _, default = given[name]
        raise ValueError(
            f"{name}={value!r} has no meaning for SlowMo: {_WHY[name]}, and SlowMo sends no "
            f"gradients but one fused displacement each sync_period steps; leave it at {default!r}"
        )


def refuse_late(name: str, value: Any) -> None:
    """Raise AttributeError if one of SlowMo's settings is set after the optimizer was made.

    Args:
        name: the attribute that is set.
        value: its new value.
    """
    if name in SlowMoConfig().asdict():
        raise AttributeError(
            f"{name} cannot change once the optimizer is made, since all ranks count on it: give "
            f"{name}={value!r} to DistributedOptimizer"
        )


def check_op(op: Any, hvd: ModuleType) -> None:
    """Raise ValueError unless ``op`` is Average.

    Args:
        op: a reduction.
        hvd: Horovod's module for the framework, which names the reductions.
    """
    if op == hvd.Average:
        return
    names = ("Sum", "Adasum", "Min", "Max", "Product")
    name = next((name for name in names if getattr(hvd, name) == op), repr(op))
    why = (
        "Adasum combines gradients"
        if name == "Adasum"
        else "SlowMo is defined by the workers' mean"
    )
    raise ValueError(f"op={name} cannot be used with SlowMo: {why}; use op=hvd.Average")


def check_process_set(process_set: Any, hvd: ModuleType) -> None:
    """Raise TypeError or ValueError unless Horovod is initialised and knows the process set.

    Warn if Horovod knows no other process although the launcher has started several.
    """
    if not isinstance(process_set, hvd.ProcessSet):
        raise TypeError(
            "process_set must be hvd.global_process_set or what hvd.add_process_set returned, "
            f"got {process_set!r}"
        )
    if not hvd.is_initialized():
        raise ValueError("Horovod has not been initialised; call hvd.init() first")
    if process_set.size() is None:
        raise ValueError(
            f"{process_set} is not known to Horovod; call hvd.add_process_set(...) on every rank "
            "and give what it returns"
        )
    known = process_set.process_set_id == 0 or hvd.rank() in process_set.ranks
    if known and not process_set.included():
        raise ValueError(ANOTHER_FRAMEWORK)
    warn(alone_among(hvd.size()))


def check_compression(compression: Any) -> None:
    """Raise TypeError unless ``compression`` is a Horovod compressor."""
    methods = (getattr(compression, name, None) for name in ("compress", "decompress"))
    if not all(map(callable, methods)):
        raise TypeError(
            "compression must be hvd.Compression.none, hvd.Compression.fp16 or a class with "
            f"their two methods, got {compression!r}"
        )


def check_backward_passes(value: Any) -> int:
    """Horovod's ``backward_passes_per_step``: an int >= 1, or TypeError or ValueError.

    Gradients add up locally, as they do in Horovod, so nothing else needs to be done.
    """
    return check_integer("backward_passes_per_step", value, least=1)
