"""What must be equal on all ranks before they may train together, and the error when it is not."""

import dataclasses
from collections.abc import Mapping, Sequence

from slowmo_hvd.core.config import BUFFER_STRATEGIES, SlowMoConfig
from slowmo_hvd.core.schedule import Schedule


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
    shapes: Sequence[Sequence[int]],
) -> Figures:
    """The numbers that must be equal: ``shapes`` are the parameters', in the optimizer's order."""
    sizes = [_product(shape) for shape in shapes]
    figures = {
        **{name: value for name, value in config.asdict().items() if name != "buffers"},
        "buffers": BUFFER_STRATEGIES.index(config.buffers),
        "whether there is a slow state": has_slow_state,
        "steps taken": schedule.step,
        "window": schedule.window,
        "position in the window": schedule.position,
        "number of parameters": len(sizes),
        "number of elements": sum(sizes),
        "order or shapes of the parameters": _fingerprint(shapes),
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


def _disagreement(name: str, root: int, ours: float, rank: int, theirs: float) -> str:
    if name == "buffers":
        first, other = BUFFER_STRATEGIES[int(ours)], BUFFER_STRATEGIES[int(theirs)]
        return f"the ranks differ in buffers: {first!r} on rank {root}, {other!r} on rank {rank}"
    if name == "order or shapes of the parameters":
        return f"the ranks differ in the {name}: rank {rank} has another model than rank {root}"
    cure = "use the same script and arguments on every rank"
    if name in ("whether there is a slow state", "steps taken", "window", "position in the window"):
        cure = (
            "after loading a checkpoint on some ranks only, call "
            "hvd.broadcast_optimizer_state(optimizer, root_rank=0) on all"
        )
    return f"the ranks differ in {name}: {ours:g} on rank {root}, {theirs:g} on rank {rank}; {cure}"


def _product(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _fingerprint(shapes: Sequence[Sequence[int]]) -> int:
    """A number below 2**31 that differs, but for rare chance, between unequal lists of shapes.

    A polynomial hash rather than ``hash``, whose value is no promise between two interpreters.
    """
    value = 0
    for shape in shapes:
        for size in (*shape, -1):
            value = (value * 1_000_003 + size + 2) % 2_147_483_647
    return value
