"""What the engine needs from an adapter besides its transport: arithmetic, but no ordering."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Protocol

from slowmo_hvd.core.buckets import Bucket
from slowmo_hvd.core.outer import OuterStep
from slowmo_hvd.core.pipeline import Load
from slowmo_hvd.core.roll_call import RollCall
from slowmo_hvd.core.schedule import MeanLearningRate, Schedule


class Slow(Protocol):
    """The parameters' anchor and slow momentum, and an adapter's arithmetic on one bucket."""

    def buckets_of(self, fragment: int) -> Sequence[Bucket]:
        """All buckets of a fragment that are synchronised, the same on every rank."""

    def squared_norm(self, buckets: Sequence[Bucket], memory: Callable[[Bucket], Any]) -> float:
        """‖x^i‖² in these buckets; not finite if any parameter is not finite.

        Args:
            buckets: some of its own buckets.
            memory: returns working memory of a bucket's size.
        """

    def displacement(self, bucket: Bucket, out: Any) -> Any:
        """Write d^i = x_{t,0} - x^i into memory that travels; return ‖d^i‖², a number."""

    def outer_step(
        self, bucket: Bucket, total: Any, workers: int, steps: Sequence[OuterStep]
    ) -> Any:
        """Take the outer step from a sum over ``workers``; return the sum's squared norm.

        x^i begins the next window at the result, unless it was launched.
        """

    def keep(self, bucket: Bucket, total: Any) -> tuple[Any, Sequence[Any]]:
        """Take a sum out of the memory that travels, for a later `outer_step`.

        Returns:
            The sum, and its squared norm in each of the bucket's runs.
        """

    def scale(self, out: Any, factor: float) -> None:
        """Multiply the memory that travels by a factor."""

    def nothing(self, out: Any) -> None:
        """Write zeros, the displacement of a worker that is not sound."""


class Overlapping(Slow, Protocol):
    """The same, where local steps go on while an average is under way."""

    def launch(self, fragment: int) -> Slow:
        """Remember where x^i is; return an object with the displacements from there.

        Its outer steps change only anchor and momentum. Another thread can use it.
        """

    def return_to_anchor(self, fragment: int) -> None:
        """Set x^i back to x_{t,0}."""

    def land(self, fragment: int) -> None:
        """x^i ← x_{t+1,0} + (x^i - x^i at the launch); then forget the launch."""

    def drop(self, fragment: int) -> None:
        """Forget the launch, which has failed."""


class Counters(Protocol):
    """Where the counters are kept, if not in the engine: in the variables of a graph."""

    def take(self, schedule: Schedule) -> tuple[list[list[MeanLearningRate]], list[int]]:
        """Set the schedule to these counters; return the engine's ``rates`` and ``samples``."""

    def give(
        self, schedule: Schedule, rates: list[list[MeanLearningRate]], samples: list[int]
    ) -> None:
        """Set these counters to those of the schedule."""


class Inner(Protocol):
    """What the inner optimizer remembers, and what happens to it when a window begins."""

    def finite(self) -> bool:
        """Whether everything that this worker would send of it is finite."""

    def has_news(self) -> bool:
        """Whether this worker has something to send that the ranks have not agreed on."""

    def cross(
        self, slow: Any, fragments: Collection[int], *, sound: bool, opens_window: bool
    ) -> "Crossing":
        """Begin a sync, just before the first bucket is packed.

        Args:
            slow: what is synchronised, an adapter's `Slow`.
            fragments: the fragments of it that are synchronised.
            sound: whether this worker contributes.
            opens_window: whether a window begins after it, and not a step of the warm-up.
        """

    def stop(self, slow: Any, *, sound: bool) -> "Crossing":
        """The same when parameters stop being trained: only copies of the weights matter."""


class Crossing(Protocol):
    """The inner optimizer's part in one sync: line 2 of Algorithm 1.

    Attributes:
        changed: whether something has changed already, before any bucket has landed.
    """

    changed: bool

    def loads(self, roll: RollCall, name: str, *, news: bool) -> Iterator[Load]:
        """What of it is sent; asked for once all displacements are packed.

        Args:
            roll: the workers in the sync.
            name: the name of its collectives, which nothing else uses.
            news: whether any worker has news; the same on every rank.
        """

    def end(self) -> None:
        """Finish when all has landed. A worker that is not sound begins with fresh buffers."""
