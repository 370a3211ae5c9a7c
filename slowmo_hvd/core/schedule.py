"""When to synchronise what: after steps τ, 2τ, 3τ, exactly, and after every step of the warm-up.

With fragments each of them has windows of its own, of τ steps too, which begin at different steps.
With an overlap a window's average is launched where the window ends, and lands some steps later.

Everything here is a counter that every rank advances alike, so that every rank answers alike:
this is what lets a rank enter a collective without asking the others first.
"""

import dataclasses
import enum
from collections.abc import Iterable
from typing import Any, NamedTuple

from slowmo_hvd.core.config import SlowMoConfig


class Sync(enum.Enum):
    """Why the workers synchronise."""

    WARMUP = "warmup"  #: after a warm-up step: a plain average
    WINDOW = "window"  #: after τ local steps: an average and the slow momentum step
    FLUSH = "flush"  #: before τ local steps, at the user's word; otherwise like WINDOW


class Due(NamedTuple):
    """What follows a step.

    Attributes:
        kind: why to synchronise.
        ending: the fragments whose windows end: to be launched, or synchronised at once.
        landing: those whose averages land.
    """

    kind: Sync
    ending: tuple[int, ...]
    landing: tuple[int, ...]


def in_flight(landings: Iterable[Any]) -> list[int]:
    """The fragments whose averages have not landed, of the steps after which they do."""
    return [fragment for fragment, landing in enumerate(landings) if int(landing)]


class Schedule:
    """The τ-period schedule of Algorithm 1, preceded by a warm-up.

    Attributes:
        step: local steps attempted so far, those of the warm-up included.
        windows: t of each fragment, the outer step under way.
        positions: k of each fragment, the local steps attempted in its window, 0 <= k <= τ. In the
            first one it begins higher, so that the fragments' windows end one after the other.
        landings: the step after which each fragment's average lands; 0 where none is under way.
    """

    def __init__(self, config: SlowMoConfig) -> None:
        self._period = config.sync_period
        self._warmup_steps = config.warmup_steps
        self._overlap = config.overlap_steps
        self.step = 0
        self.windows = [0] * config.fragments
        self.positions = [self.first_position(f) for f in range(config.fragments)]
        self.landings = [0] * config.fragments

    @property
    def fragments(self) -> range:
        """All of them."""
        return range(len(self.windows))

    def first_position(self, fragment: int) -> int:
        """Where its first window begins: number f of F ends that after (f + 1) τ / F steps."""
        return self._period - (fragment + 1) * self._period // len(self.windows)

    def tick(self) -> Due | None:
        """Count one local step; return what is now due, if something is."""
        self.step += 1
        if not self.is_warmup(self.step):
            self.positions = [position + 1 for position in self.positions]
        due = self.due()
        return due if due.ending or due.landing else None

    def due(self) -> Due:
        """What follows the step that was counted last."""
        pairs = zip(self.positions, self.landings, strict=True)
        counters = [(f, position, landing) for f, (position, landing) in enumerate(pairs)]
        kind = Sync.WARMUP if self.is_warmup(self.step) else Sync.WINDOW
        return Due(
            kind,
            tuple(f for f, position, _ in counters if self.ends(self.step, position)),
            tuple(f for f, _, landing in counters if self.lands(self.step, landing)),
        )

    # The next three take tensors as well as ints: a graph keeps its counters in variables.

    def is_warmup(self, step: Any) -> Any:
        """Whether the ``step``-th step, counted from 1, belongs to the warm-up."""
        return step <= self._warmup_steps

    def ends(self, step: Any, position: Any) -> Any:
        """Whether a window ends with the ``step``-th step, the ``position``-th in it."""
        # Not `==`: a sync that failed (a lost worker) is due again after the next step.
        return self.is_warmup(step) | (position >= self._period)

    def lands(self, step: Any, landing: Any) -> Any:
        """Whether what is to land after the step ``landing`` does so after the ``step``-th."""
        return (landing > 0) & (step >= landing)

    @property
    def warming_up(self) -> bool:
        """Whether the next step belongs to the warm-up, so that no window is open yet."""
        return self.step < self._warmup_steps

    def end(self, kind: Sync, fragments: Iterable[int]) -> None:
        """Count what a sync of these fragments ended: their windows, or nothing in the warm-up."""
        if kind is Sync.WARMUP:
            return
        for fragment in fragments:
            self.windows[fragment] += 1
            self.positions[fragment] = 0
        if kind is Sync.FLUSH:
            self.positions = [self.first_position(fragment) for fragment in self.fragments]

    def launch(self, fragment: int) -> None:
        """Count that its window has ended, and when its average lands."""
        self.end(Sync.WINDOW, [fragment])
        self.landings[fragment] = self.step + self._overlap

    def reopen(self, fragment: int) -> None:
        """Take `launch` back, since it failed: due again after the next step."""
        self.windows[fragment] -= 1
        self.positions[fragment] += self._period
        self.landings[fragment] = 0

    def land(self, fragment: int) -> None:
        """Count that its average has landed."""
        self.landings[fragment] = 0


@dataclasses.dataclass
class MeanLearningRate:
    """γ_t of one parameter group: the mean of its learning rate over a window's steps.

    Equal to the paper's γ_t wherever the learning rate is constant in a window, and finite for
    schedules that start or end at 0. ``total`` may be a tensor where the learning rate is one.
    """

    total: Any = 0.0
    steps: int = 0

    def add(self, lr: Any, steps: int = 1) -> None:
        """Count one step taken at learning rate ``lr``; or so many, at rates of this sum."""
        self.total = self.total + lr  # not +=: a tensor learning rate must stay the optimizer's
        self.steps += steps

    @property
    def mean(self) -> float:
        """γ_t, or 0 where the group took no step."""
        return float(self.total) / self.steps if self.steps else 0.0

    def clear(self) -> None:
        """Begin a window."""
        self.total, self.steps = 0.0, 0
