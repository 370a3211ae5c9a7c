"""The engine on NumPy arrays, with a thread for each worker: an adapter that fits on a page."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from slowmo_hvd.core.buckets import Bucket, Leaf, plan, share_out
from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.critical_section import CriticalSections
from slowmo_hvd.core.engine import Engine
from slowmo_hvd.core.outer import OuterStep
from slowmo_hvd.core.stall import StallWatch


class LostError(RuntimeError):
    """A collective that failed, as Horovod's do when a worker is lost."""


class Ring:
    """Sums by name over threads that are all here."""

    def __init__(self, workers: int, lost_in: str = "") -> None:
        self.workers = workers
        self._lost_in = lost_in  # the collective in which a worker is lost
        self._sums: dict[str, list[Any]] = {}
        self._barrier = threading.Barrier(workers, timeout=20)
        self._lock = threading.Lock()

    def allreduce(self, array: np.ndarray, name: str) -> None:
        """In place."""
        if name == self._lost_in:
            raise LostError
        with self._lock:
            self._sums.setdefault(name, []).append(array.copy())
        self._barrier.wait()
        # In one order, so that all threads have the same sum bit for bit.
        total = np.sum(sorted(self._sums[name], key=lambda a: a.tobytes()), axis=0)
        self._barrier.wait()
        self._sums.pop(name, None)
        array[...] = total


class Transport:
    """See `slowmo_hvd.core.transport.Transport`."""

    wires = 3

    def __init__(self, ring: Ring, rank: int) -> None:
        self._ring = ring
        self.workers, self.place, self.ranks = ring.workers, rank, list(range(ring.workers))
        self.critical = CriticalSections(lambda: rank, LostError)
        self.stall_watch = StallWatch(lambda: rank, lambda: None, LostError)
        self.sent, self.waited, self._gathered = 0, 0.0, 0

    def range(self, name: str) -> Any:
        return contextlib.nullcontext()

    def in_background(self, call: Callable[[], Any]) -> Callable[[], Any]:
        return call

    def memory(self, room: Any, size: int, slot: int) -> np.ndarray:
        return np.full(size, np.nan)  # whatever is not written is found

    def seal(self, wire: np.ndarray, name: str, *, exact: bool) -> tuple[np.ndarray, str]:
        return wire, name

    def start(self, sealed: tuple[np.ndarray, str]) -> None:
        self.sent += sealed[0].nbytes

    def finish(self, sealed: tuple[np.ndarray, str]) -> np.ndarray:
        self._ring.allreduce(*sealed)
        return sealed[0]

    def start_numbers(self, numbers: Sequence[float], name: str) -> tuple[np.ndarray, str]:
        row = np.array(numbers, np.float64)
        self.sent += row.nbytes
        return row, name

    def sum_numbers(self, numbers: Sequence[float], name: str) -> list[float]:
        return self.finish_numbers(self.start_numbers(numbers, name))

    def finish_numbers(self, started: tuple[np.ndarray, str]) -> list[float]:
        numbers: list[float] = self.finish(started).tolist()
        return numbers

    def gather(self, numbers: Sequence[float], name: str) -> dict[int, list[float]]:
        rows = np.zeros((self.workers, len(numbers)))
        rows[self.place] = numbers
        self._gathered += 1  # the ring wants a name of its own for each of two in a row
        self.finish((rows, f"{name}.{self._gathered}"))
        return dict(enumerate(rows.tolist()))


class Room(NamedTuple):
    """Of float64 arrays."""

    itemsize: int = 8


ROOM = Room()


class Slow:
    """See `slowmo_hvd.core.ports.Overlapping`. Each array is a parameter group of its own."""

    def __init__(self, x0: Sequence[np.ndarray], bucket: int, fragments: int) -> None:
        leaves = {i: Leaf(array.size, ROOM, i) for i, array in enumerate(x0)}
        parts = share_out([array.size for array in x0], fragments)
        self.plan = plan(leaves, leaves, bucket * ROOM.itemsize, parts)
        self.shapes = [array.shape for array in x0]
        self.x = np.zeros(self.plan.sizes.get(ROOM, 0))
        for x, array in zip(self.arrays(self.x), x0, strict=True):
            x[...] = array
        self.anchor, self.momentum = self.x.copy(), np.zeros_like(self.x)
        self.launched: dict[int, np.ndarray] = {}

    def buckets_of(self, fragment: int) -> Sequence[Bucket]:
        return self.plan.fragments[fragment]

    def arrays(self, flat: np.ndarray) -> list[np.ndarray]:
        """Views of a flat array, one a group."""
        return [
            flat[begin : begin + int(np.prod(shape))].reshape(shape)
            for begin, shape in zip(
                (self.plan.places[i] for i in range(len(self.shapes))), self.shapes, strict=True
            )
        ]

    def squared_norm(self, buckets: Sequence[Bucket], memory: Callable[[Bucket], Any]) -> float:
        return float(sum(self.x[at] @ self.x[at] for at in places(buckets)))

    def displacement(self, bucket: Bucket, out: np.ndarray) -> float:
        for _, start, stop, offset in bucket.runs:
            inside = slice(start, stop)
            out[offset : offset + stop - start] = self.anchor[inside] - self.x[inside]
        return float(out @ out)

    def outer_step(
        self, bucket: Bucket, total: np.ndarray, workers: int, steps: Sequence[OuterStep]
    ) -> float:
        for group, start, stop, offset in bucket.runs:
            step, inside = steps[group], slice(start, stop)
            d, u = total[offset : offset + stop - start] / workers, self.momentum[inside]
            self.anchor[inside] -= step.step * d + step.carry * u
            self.momentum[inside] = step.decay * u + step.gain * d
            self.restart(inside)
        return float(total @ total)

    def keep(self, bucket: Bucket, total: np.ndarray) -> tuple[np.ndarray, list[float]]:
        kept = total.copy()
        total[...] = np.nan
        return kept, [
            float(np.sum(kept[offset : offset + stop - start] ** 2))
            for _, start, stop, offset in bucket.runs
        ]

    def restart(self, inside: slice) -> None:
        self.x[inside] = self.anchor[inside]

    def scale(self, out: np.ndarray, factor: float) -> None:
        out *= factor

    def nothing(self, out: np.ndarray) -> None:
        out[...] = 0

    def launch(self, fragment: int) -> "Launched":
        self.launched[fragment] = self.x.copy()
        launched = object.__new__(Launched)
        vars(launched).update(vars(self), x=self.launched[fragment])
        return launched

    def return_to_anchor(self, fragment: int) -> None:
        for at in places(self.buckets_of(fragment)):
            self.restart(at)
            self.launched[fragment][at] = self.anchor[at]

    def land(self, fragment: int) -> None:
        at_launch = self.launched.pop(fragment)
        for at in places(self.buckets_of(fragment)):
            self.x[at] = self.anchor[at] + (self.x[at] - at_launch[at])

    def drop(self, fragment: int) -> None:
        del self.launched[fragment]


class Launched(Slow):
    """The same arrays, but for x: where it was at the launch."""

    def restart(self, inside: slice) -> None:
        pass


def places(buckets: Sequence[Bucket]) -> Iterator[slice]:
    """Where they are in a flat array."""
    return (slice(run.start, run.stop) for bucket in buckets for run in bucket.runs)


class Nothing:
    """See `slowmo_hvd.core.ports.Inner`: an inner optimizer without memory."""

    changed = False

    def finite(self) -> bool:
        return True

    def has_news(self) -> bool:
        return False

    def cross(self, slow: Any, fragments: Any, *, sound: bool, opens_window: bool) -> "Nothing":
        return self

    def stop(self, slow: Any, *, sound: bool) -> "Nothing":
        return self

    def loads(self, roll: Any, name: str, *, news: bool) -> Iterator[Any]:
        return iter(())

    def end(self) -> None:
        pass


class Worker:
    """One worker with plain gradient descent inside."""

    def __init__(
        self, config: SlowMoConfig, ring: Ring, rank: int, x0: Sequence[np.ndarray], bucket: int
    ) -> None:
        self.slow, self.rank = Slow(x0, bucket, config.fragments), rank
        self.engine = Engine(config, Transport(ring, rank), Nothing(), len(x0))
        self.engine.slow, self.engine.name = self.slow, "x"

    def step(self, gradients: Sequence[np.ndarray], rates: Sequence[float]) -> None:
        """One local step, and the sync that it makes due."""
        self.engine.check()
        for x, gradient, rate in zip(self.slow.arrays(self.slow.x), gradients, rates, strict=True):
            x -= rate * gradient
        if self.engine.count(rates):
            self.engine.act()


def together(workers: int, work: Callable[[int], Any]) -> list[Any]:
    """Each worker's result, or what it raised."""
    results: list[Any] = [None] * workers

    def run(rank: int) -> None:
        try:
            results[rank] = work(rank)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=[rank]) for rank in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
