"""What must be equal on all ranks before they may train together, and the error when it is not."""

import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from slowmo_hvd import __version__
from slowmo_hvd.core.config import BUFFER_STRATEGIES, SlowMoConfig
from slowmo_hvd.core.schedule import Schedule

Parameter: TypeAlias = tuple[tuple[int, ...], str]  #: shape and dtype

#: Figures that tell only whether something is equal, and what a rank has if it is not.
_FINGERPRINTS = {
    "slowmo_hvd's version": "another",
    "compression": "another",
    "order or shapes of the parameters": "another model",
    "dtypes of the parameters": "others",
    "parameter groups": "others",
    "buffers of the inner optimizer": "others",
}
_POSITION = ("whether there is a slow state", "steps taken", "window", "position in the window")


@dataclasses.dataclass(frozen=True)
class Figures:
    """One rank's configuration and position as numbers, in a fixed order, for the wire."""

    names: tuple[str, ...]
    values: tuple[float, ...]


def figures_of(
    config: SlowMoConfig,
    schedule: Schedule,
    *,
    has_slow_state: bool,
    compression: str,
    groups: Sequence[Sequence[Parameter]],
    gradients_per_step: int = 1,
    buffers: Any = None,
) -> Figures:
    """The numbers that must be equal.

    Args:
        config: all of it is compared.
        schedule: its counters are.
        has_slow_state: whether this rank has an anchor already.
        compression: a name of how displacements are compressed.
        groups: shape and dtype of each parameter, in each parameter group.
        gradients_per_step: how many gradients add up before each local step.
        buffers: what describes the buffers to be averaged, where they are known at the start.
    """
    shapes = [shape for group in groups for shape, _ in group]
    figures = {
        "slowmo_hvd's version": _fingerprint(__version__),
        **{name: value for name, value in config.asdict().items() if name != "buffers"},
        "buffers": BUFFER_STRATEGIES.index(config.buffers),
        "gradients per step": gradients_per_step,
        "compression": _fingerprint(compression),
        "whether there is a slow state": has_slow_state,
        "steps taken": schedule.step,
        "window": schedule.window,
        "position in the window": schedule.position,
        "number of parameters": len(shapes),
        "number of elements": sum(map(math.prod, shapes)),
        "order or shapes of the parameters": _fingerprint(shapes),
        "dtypes of the parameters": _fingerprint([dtype for group in groups for _, dtype in group]),
        "parameter groups": _fingerprint([len(group) for group in groups]),
        "buffers of the inner optimizer": _fingerprint(buffers),
    }
    return Figures(tuple(figures), tuple(float(value) for value in figures.values()))


def check_agreement(names: Sequence[str], by_rank: Mapping[int, Sequence[float]]) -> None:
    """Raise the same ValueError on every rank unless all ranks sent the same figures.

    Args:
        names: what the figures are.
        by_rank: every rank's figures, equal on every rank since a collective brought them.
    """
    root = min(by_rank)
    for rank in sorted(by_rank):
        for name, ours, theirs in zip(names, by_rank[root], by_rank[rank], strict=True):
            if ours != theirs:
                raise ValueError(_disagreement(name, root, ours, rank, theirs))


def unequal_start(rank: int, root: int, apart: float) -> str:
    """The warning of a rank whose first weights were not the root's.

    Args:
        rank: that rank.
        root: the rank whose weights all take.
        apart: the largest difference between two elements.
    """
    return (
        f"rank {rank} started from other weights than rank {root} (up to {apart:.3g} apart) and "
        f"takes rank {root}'s; broadcast the weights before the first step"
    )


def class_name(value: Any) -> str:
    """The name of a class, or of an object's class: no address, which differs between ranks."""
    cls = value if isinstance(value, type) else type(value)
    return f"{cls.__module__}.{cls.__qualname__}"


def _disagreement(name: str, root: int, ours: float, rank: int, theirs: float) -> str:
    said = f"the ranks differ in {name}: "
    if name in _FINGERPRINTS:
        return said + f"rank {rank} has {_FINGERPRINTS[name]} than rank {root}"
    if name == "buffers":
        first, other = BUFFER_STRATEGIES[int(ours)], BUFFER_STRATEGIES[int(theirs)]
        return said + f"{first!r} on rank {root}, {other!r} on rank {rank}"
    cure = "use the same script and arguments on every rank"
    if name in _POSITION:
        cure = (
            "after loading a checkpoint on some ranks only, call "
            "hvd.broadcast_optimizer_state(optimizer, root_rank=0) on all"
        )
    return said + f"{_plain(ours)} on rank {root}, {_plain(theirs)} on rank {rank}; {cure}"


def _plain(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


def _fingerprint(value: Any) -> int:
    # Not hash(): its value is no promise between two interpreters. Exact in a float64.
    return zlib.crc32(repr(value).encode())
