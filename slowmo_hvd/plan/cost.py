"""What a step costs by each way to train: formulas, and no measuring."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Protocol


class Wire(Protocol):
    """What an allreduce costs."""

    workers: int  #: m

    def seconds(self, nbytes: float, itemsize: int) -> float:
        """Of an allreduce of so many bytes, in numbers of so many."""


@dataclasses.dataclass(frozen=True)
class Ring:
    """A ring allreduce between equal links.

    2 (m - 1) messages, one after the other, each of 1/m of the bytes: P. Patarasuk, X. Yuan,
    "Bandwidth optimal all-reduce algorithms for clusters of workstations", JPDC 2009, section 3.

    Attributes:
        workers: m.
        rate: bits a second of each worker's link, in each direction.
        latency: seconds of a message.
    """

    workers: int
    rate: float
    latency: float = 0.0

    def seconds(self, nbytes: float, itemsize: int) -> float:
        """Of an allreduce, whatever its numbers are."""
        messages = 2 * (self.workers - 1)
        return messages * (self.latency + 8 * nbytes / self.workers / self.rate)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured at some sizes: a line between two of them, and on beyond the last.

    Attributes:
        workers: m.
        points: by the bytes of a number, bytes and seconds, ascending; at least two.
    """

    workers: int
    points: Mapping[int, Sequence[tuple[float, float]]]

    def seconds(self, nbytes: float, itemsize: int) -> float:
        """Of an allreduce."""
        points = self.points[itemsize]
        last = len(points) - 1
        later = next((i for i, (size, _) in enumerate(points) if size >= nbytes), last)
        at = max(later, 1)
        (x0, y0), (x1, y1) = points[at - 1], points[at]
        return max(y0 + (y1 - y0) * (nbytes - x0) / (x1 - x0), 0.0)


@dataclasses.dataclass(frozen=True)
class Training:
    """What is trained.

    Attributes:
        parameters: how many.
        step: seconds of a step of one worker alone.
        spread: the standard deviation of a step's seconds over their mean, from worker to worker
            and from step to step.
    """

    parameters: int
    step: float
    spread: float = 0.0

    def slowest(self, steps: int, workers: int) -> float:
        """Seconds until the slowest of the workers has taken so many steps.

        The mean of the largest of m normal numbers is below σ √(2 ln m), and near it where m is
        large; the spread of a sum of τ steps is √τ of one's.
        """
        return self.step * (steps + self.spread * math.sqrt(2 * steps * math.log(workers)))


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        period: τ; 0 is gradient averaging, in every step.
        itemsize: bytes of a number on the wire: 4, or 2 with fp16.
        overlap: d, the local steps that go on while an average is under way.
        fragments: F.
    """

    period: int = 0
    itemsize: int = 4
    overlap: int = 0
    fragments: int = 1

    @property
    def name(self) -> str:
        """For a person."""
        if not self.period:
            return "gradient averaging" + (", fp16" if self.itemsize == 2 else "")
        parts = ["slowmo"]
        parts += ["fp16"] if self.itemsize == 2 else []
        parts += [f"overlap_steps={self.overlap}"] if self.overlap else []
        parts += [f"fragments={self.fragments}"] if self.fragments > 1 else []
        return ", ".join(parts)


def hiding_steps(way: Way, training: Training, wire: Wire) -> int:
    """The local steps that an average takes: the overlap that hides it."""
    nbytes = training.parameters * way.itemsize / way.fragments
    return math.ceil(wire.seconds(nbytes, way.itemsize) / training.step)


def step_seconds(way: Way, training: Training, wire: Wire) -> float:
    """Seconds of a step, on average over a window.

    Without an overlap a window lasts until the slowest worker has taken τ steps, and F averages of
    1/F of the model follow. With one, an average costs what of it is left after d steps; and no
    window is shorter than the wire needs for all that is sent in it.
    """
    nbytes = training.parameters * way.itemsize
    if not way.period:
        return training.slowest(1, wire.workers) + wire.seconds(nbytes, way.itemsize)
    average = wire.seconds(nbytes / way.fragments, way.itemsize)
    left = max(average - way.overlap * training.step, 0.0)
    window = training.slowest(way.period, wire.workers) + way.fragments * left
    return max(window, way.fragments * average) / way.period


def bytes_a_step(way: Way, training: Training, workers: int) -> float:
    """What a worker's link carries in each direction for a step, in a ring."""
    nbytes = training.parameters * way.itemsize * 2 * (workers - 1) / workers
    return nbytes / max(way.period, 1)


def smallest_period(way: Way, training: Training, wire: Wire, overhead: float) -> int | None:
    """The smallest τ at which a step costs at most so much more than a worker's alone.

    Args:
        way: the rest of it.
        training: what is trained.
        wire: what it is trained on.
        overhead: such as 0.05.

    Returns:
        None where no τ up to 100,000 does: where workers that wait for the slowest are the cost.
    """
    least = max(way.overlap + 1, way.fragments)

    def fits(period: int) -> bool:
        seconds = step_seconds(dataclasses.replace(way, period=period), training, wire)
        return seconds <= (1 + overhead) * training.step

    high = least
    while not fits(high):
        high *= 2
        if high > 100_000:
            return None
    low = max(high // 2, least)  # longer windows never cost more
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return high
