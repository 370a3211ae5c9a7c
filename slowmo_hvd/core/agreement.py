"""What must be equal on all ranks before they can train together, and the error if it is not."""

import dataclasses
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from slowmo_hvd import __version__
from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.gathering import Gather, gather_json
from slowmo_hvd.core.names import agreed_serial, claim
from slowmo_hvd.core.schedule import Schedule

Parameter: TypeAlias = tuple[tuple[int, ...], str]  #: shape and dtype

#: Settings that can be a number on one rank and a function, or None, on another.
_OF_ANY_KIND = ("sync_period", "slow_lr", "slow_momentum", "outlier_factor", "clip_displacement")
_LONGEST = 200  # characters of a value in an error
_POSITION = (
    "whether there is a slow state",
    "steps taken",
    "window",
    "position in the window",
    "the step after which an average lands",
)


@dataclasses.dataclass(frozen=True)
class Figures:
    """One rank's configuration and position as numbers, in a fixed order, to be sent.

    Attributes:
        names: the names of the figures.
        values: numbers as they are, and checksums of everything else.
        details: the values behind the checksums, by name; sent only when checksums differ.
    """

    names: tuple[str, ...]
    values: tuple[float, ...]
    details: Mapping[str, Any]


def figures_of(
    config: SlowMoConfig,
    schedule: Schedule,
    *,
    has_slow_state: bool,
    compression: str,
    groups: Sequence[Sequence[Parameter]],
    names: Sequence[str] = (),
    frozen: Sequence[str | int] = (),
    earlier_positions: Sequence[int] = (),
    gradients_per_step: int = 1,
    buffers: Any = None,
) -> Figures:
    """The numbers that must be equal.

    Args:
        config: all of its settings are compared.
        schedule: its counters are compared.
        has_slow_state: whether this rank has an anchor already.
        compression: the name of the compression of the displacements.
        groups: shape and dtype of each parameter, in each parameter group.
        names: the parameters' names in the same order, if the script gives them.
        frozen: the parameters that are not trained, by name or position.
        earlier_positions: the position of each parameter when the ranks last agreed, and -1 for a
            new one; empty if they have not agreed, or have loaded a state since.
        gradients_per_step: the number of gradients that add up before each local step.
        buffers: a list that describes the buffers to be averaged, if they are known at the start.
    """
    shapes = [shape for group in groups for shape, _ in group]
    counted = {
        "window": schedule.windows,
        "position in the window": schedule.positions,
        "steps of the window": schedule.periods,
        "the step after which an average lands": schedule.landings,
    }
    figures = {
        "slowmo_hvd's version": __version__,
        **config.asdict(),
        "gradients per step": gradients_per_step,
        "compression": compression,
        "whether there is a slow state": has_slow_state,
        "steps taken": schedule.step,
        **{name: _one(counters) for name, counters in counted.items()},
        "number of parameters": len(shapes),
        "number of elements": sum(map(math.prod, shapes)),
        "names of the parameters": list(names),
        "frozen parameters": list(frozen),
        "earlier positions of the parameters (-1: new)": list(earlier_positions),
        "order or shapes of the parameters": shapes,
        "dtypes of the parameters": [dtype for group in groups for _, dtype in group],
        "parameter groups": [len(group) for group in groups],
        "buffers of the inner optimizer": buffers or [],
    }
    return as_figures(figures)


def as_figures(figures: Mapping[str, Any]) -> Figures:
    """Named values as numbers, with a checksum of each str or list, and of settings of any type.

    Which values get a checksum must be equal on every rank, because the details of a checksum that
    differs are exchanged in a collective.
    """
    details = {
        name: value
        for name, value in figures.items()
        if isinstance(value, str | list) or name in _OF_ANY_KIND
    }
    values = (_checksum(value) if name in details else value for name, value in figures.items())
    return Figures(tuple(figures), tuple(map(float, values)), details)


def agree(
    figures: Figures,
    gather: Gather,
    serial: int | None,
    others: Callable[[], Iterable[int | None]],
) -> tuple[int, int]:
    """The ranks' root, and the number by which they name this optimizer. A collective.

    Args:
        figures: this rank's figures.
        gather: the collective.
        serial: the optimizer's number so far, as for `claim`.
        others: the numbers of the other optimizers, as for `claim`.

    Raises:
        ValueError: as in `check_agreement`.
        RuntimeError: as in `agreed_serial`.
    """
    size = len(figures.values)
    by_rank = gather([*figures.values, *claim(serial, others)])
    check_agreement(figures, {rank: row[:size] for rank, row in by_rank.items()}, gather)
    return min(by_rank), agreed_serial({rank: row[size:] for rank, row in by_rank.items()})


def check_agreement(
    figures: Figures, by_rank: Mapping[int, Sequence[float]], gather: Gather
) -> None:
    """Raise the same ValueError on every rank unless all ranks sent the same figures.

    Args:
        figures: this rank's figures.
        by_rank: ``figures.values`` of every rank. They come from a collective and are equal on
            every rank, so all ranks find the same difference and either all enter ``gather`` or
            none does.
        gather: a collective in which the ranks exchange what they need to name both values.
    """
    root = min(by_rank)
    for rank in sorted(by_rank):
        for name, ours, theirs in zip(figures.names, by_rank[root], by_rank[rank], strict=True):
            if ours == theirs:
                continue
            if name in figures.details:
                everyones = gather_json(figures.details[name], gather)
                said = _both(everyones[root], everyones[rank], root, rank)
            else:
                said = f"{_plain(ours)} on rank {root}, {_plain(theirs)} on rank {rank}"
            raise ValueError(f"the ranks differ in {name}: {said}; {_cure(name)}")


def unequal_start(rank: int, root: int, apart: float) -> str:
    """The warning for a rank whose first weights were not the root's.

    Args:
        rank: that rank.
        root: the rank whose weights all ranks take.
        apart: the largest difference between two elements.
    """
    return (
        f"rank {rank} started from other weights than rank {root} (up to {apart:.3g} apart) and "
        f"takes rank {root}'s; broadcast the weights before the first step"
    )


def _one(counters: list[int]) -> int | list[int]:
    """The counter of one fragment as a number, which is easier to read."""
    return counters[0] if len(counters) == 1 else list(counters)


def class_name(value: Any) -> str:
    """The name of a class, or of an object's class, without an address, which differs by rank."""
    cls = value if isinstance(value, type) else type(value)
    return f"{cls.__module__}.{cls.__qualname__}"


def _both(ours: Any, theirs: Any, root: int, rank: int) -> str:
    """Both values. For two lists of the same length, the first elements that differ."""
    if isinstance(ours, list) and len(ours) == len(theirs):
        index = next(i for i in range(len(ours)) if ours[i] != theirs[i])
        return f"number {index} is " + _both_whole(ours[index], theirs[index], root, rank)
    return _both_whole(ours, theirs, root, rank)


def _both_whole(ours: Any, theirs: Any, root: int, rank: int) -> str:
    return f"{_short(ours)} on rank {root}, {_short(theirs)} on rank {rank}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _plain(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


def _cure(name: str) -> str:
    if name in _POSITION:
        return (
            "after loading a checkpoint on some ranks only, call "
            "hvd.broadcast_optimizer_state(optimizer, root_rank=0) on all"
        )
    if name == "slowmo_hvd's version":
        return "install the same version on every host"
    return "use the same script and arguments on every rank"


def _checksum(value: Any) -> int:
    # Not hash(), whose value can differ between two interpreters. Exact in a float64.
    return zlib.crc32(repr(value).encode())
