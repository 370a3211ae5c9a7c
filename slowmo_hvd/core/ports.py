"""What the engine asks of an adapter beside its transport: arithmetic, and nothing of the order."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Protocol

from slowmo_hvd.core.buckets import Bucket
from slowmo_hvd.core.outer import OuterStep
from slowmo_hvd.core.pipeline import Load
from slowmo_hvd.core.roll_call import RollCall
from slowmo_hvd.core.schedule import MeanLearningRate, Schedule


class Slow(Protocol):
    """Anchor and slow momentum of the parameters, and an adapter's arithmetic on one bucket."""

    def buckets_of(self, fragment: int) -> Sequence[Bucket]:
        """All that is synchronised of a fragment, the same on every rank."""

    def squared_norm(self, buckets: Sequence[Bucket], memory: Callable[[Bucket], Any]) -> float:
        """‖x^i‖² in these buckets; not finite if any parameter is not.

        Args:
            buckets: some of its own.
            memory: gives some of a bucket's size, to work in.
        """

    def displacement(self, bucket: Bucket, out: Any) -> Any:
        """Write d^i = x_{t,0} - x^i into memory that travels; return ‖d^i‖², a number."""

    def outer_step(
        self, bucket: Bucket, total: Any, workers: int, steps: Sequence[OuterStep]
    ) -> Any:
        """Take the outer step from a sum over so many workers; return the sum's squared norm.

        There x^i begins a window, unless it was launched.
        """

    def keep(self, bucket: Bucket, total: Any) -> tuple[Any, Sequence[Any]]:
        """Take a sum out of the memory that travels, for an `outer_step` later.

        Returns:
            It, and the squared norm of each of the bucket's runs in it.
        """

    def scale(self, out: Any, factor: float) -> None:
        """Multiply what travels."""

    def nothing(self, out: Any) -> None:
        """Write zeros, the displacement of a worker that is not sound."""


class Overlapping(Slow, Protocol):
    """The same where local steps go on while an average is under way."""

    def launch(self, fragment: int) -> Slow:
        """Remember where x^i is; return what has the displacements from there.

        The outer steps of what it returns move anchor and momentum alone. It may be used in
        another thread.
        """

    def return_to_anchor(self, fragment: int) -> None:
        """Put x^i back to x_{t,0}."""

    def land(self, fragment: int) -> None:
        """x^i ← x_{t+1,0} + (x^i - x^i at the launch), which is forgotten."""

    def drop(self, fragment: int) -> None:
        """Forget the launch, which has failed."""


class Counters(Protocol):
    """Where the counters are, if not in the engine: in the variables of a graph."""

    def take(self, schedule: Schedule) -> tuple[list[list[MeanLearningRate]], list[int]]:
        """Have the schedule be where they are; return the engine's ``rates`` and ``samples``."""

    def give(
        self, schedule: Schedule, rates: list[list[MeanLearningRate]], samples: list[int]
    ) -> None:
        """Have them be where the schedule is."""


class Inner(Protocol):
    """What the inner optimizer remembers, and what becomes of it where a window begins."""

    def finite(self) -> bool:
        """Whether all that this worker would send of it is."""

    def has_news(self) -> bool:
        """Whether this worker has something to send that the ranks have not agreed on."""

    def cross(
        self, slow: Any, fragments: Collection[int], *, sound: bool, opens_window: bool
    ) -> "Crossing":
        """Come to a sync, just before the first bucket is packed.

        Args:
            slow: what is synchronised, an adapter's `Slow`.
            fragments: which fragments of it are.
            sound: whether this worker contributes.
            opens_window: whether a window begins after it, not a step of the warm-up.
        """

    def stop(self, slow: Any, *, sound: bool) -> "Crossing":
        """Likewise where parameters stop being trained: only copies of the weights matter."""


class Crossing(Protocol):
    """The inner optimizer's way through one sync: line 2 of Algorithm 1.

    Attributes:
        changed: whether something has changed already, before any bucket has landed.
    """

    changed: bool

    def loads(self, roll: RollCall, name: str, *, news: bool) -> Iterator[Load]:
        """What of it travels, asked for once all displacements are packed.

        Args:
            roll: who is in the sync.
            name: of its collectives, in use for nothing else.
            news: whether any worker has news; the same on every rank.
        """

    def end(self) -> None:
        """All has landed. A worker that is not sound begins afresh."""
