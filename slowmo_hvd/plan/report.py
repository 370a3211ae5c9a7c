"""What the planner says: rows, a table, JSON."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from slowmo_hvd.plan.cost import (
    Training,
    Way,
    Wire,
    bytes_a_step,
    hiding_steps,
    smallest_period,
    step_seconds,
)
from slowmo_hvd.plan.experience import momentum_advice

_FRAGMENTS = 4  # of the way that has some


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to train.

    Attributes:
        way: its name.
        period: τ; 0 for gradient averaging.
        seconds: of a step.
        throughput: over that of workers by themselves.
        megabytes: that a worker's link carries in each direction for a step.
    """

    way: str
    period: int
    seconds: float
    throughput: float
    megabytes: float


def ways(periods: Sequence[int], training: Training, wire: Wire) -> Iterable[Way]:
    """Gradient averaging, and each τ by itself, with fp16, with an overlap and in fragments.

    The overlap is as long as its average takes, in steps, if the window has so many.
    """
    yield from (Way(), Way(itemsize=2))
    for period in periods:
        for way in (Way(period), Way(period, itemsize=2)):
            yield way
            if (overlapping := _overlapping(way, training, wire)).overlap:
                yield overlapping
        if period >= _FRAGMENTS:
            yield _overlapping(Way(period, fragments=_FRAGMENTS), training, wire)


def _overlapping(way: Way, training: Training, wire: Wire) -> Way:
    overlap = min(hiding_steps(way, training, wire), way.period - 1)
    return dataclasses.replace(way, overlap=overlap)


def rows(periods: Sequence[int], training: Training, wire: Wire) -> list[Row]:
    """What each way costs."""
    made = []
    for way in ways(periods, training, wire):
        seconds = step_seconds(way, training, wire)
        megabytes = bytes_a_step(way, training, wire.workers) / 1e6
        made.append(Row(way.name, way.period, seconds, training.step / seconds, megabytes))
    return made


def advice(training: Training, wire: Wire, overhead: float) -> list[str]:
    """The smallest τ for each way to send, a sentence for each, and one about β."""
    found = []
    overlap = hiding_steps(Way(1), training, wire)
    for way in (Way(1), Way(1, itemsize=2), Way(overlap + 1, overlap=overlap)):
        period = smallest_period(way, training, wire, overhead)
        if period is None:
            found.append(f"{way.name}: no sync_period costs less than {overhead:.0%}")
        else:
            found.append(f"{way.name}: sync_period={period} costs at most {overhead:.0%}")
    return [*found, momentum_advice(wire.workers)]


def table(made: Sequence[Row]) -> str:
    """The rows for a person."""
    header = f"{'tau':>5}  {'way':40}  {'s a step':>9}  {'throughput':>10}  {'MB a step':>9}"
    lines = [
        f"{row.period or '':>5}  {row.way:40}  {row.seconds:>9.4f}  {row.throughput:>10.2f}  "
        f"{row.megabytes:>9.2f}"
        for row in made
    ]
    return "\n".join([header, *lines])


def as_json(
    training: Training, wire: Any, made: Sequence[Row], advised: Sequence[str]
) -> dict[str, Any]:
    """All of it as builtins."""
    return {
        "training": dataclasses.asdict(training),
        "wire": {"kind": type(wire).__name__.lower(), **dataclasses.asdict(wire)},
        "rows": [dataclasses.asdict(row) for row in made],
        "advice": list(advised),
    }
