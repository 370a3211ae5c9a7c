"""When to synchronise what: after steps τ, 2τ, 3τ, exactly, and after every step of the warm-up.

Where τ is a function, each window has a τ of its own, which is computed where the window begins.

With fragments each of them has windows of its own, of τ steps too, which begin at different steps.
With an overlap a window's average is launched where the window ends, and lands some steps later.

Everything here is a counter that every rank advances alike, so that every rank answers alike:
this is what lets a rank enter a collective without asking the others first.
"""

import dataclasses
import enum
from collections.abc import Iterable, Mapping
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
        periods: τ of each fragment's window.
        gammas: γ, as `SlowMoConfig.period` has it, of the last average of each fragment that has
            landed; 0 before.
        landings: the step after which each fragment's average lands; 0 where none is under way.
    """

    def __init__(self, config: SlowMoConfig) -> None:
        self._config = config
        self.step = 0
        self.windows = [0] * config.fragments
        self.gammas = [0.0] * config.fragments
        self.periods = [config.period(config.warmup_steps, 0.0)] * config.fragments
        self.positions = [self.first_position(f) for f in range(config.fragments)]
        self.landings = [0] * config.fragments

    @property
    def fragments(self) -> range:
        """All of them."""
        return range(len(self.windows))

    def first_position(self, fragment: int) -> int:
        """Where its first window begins: number f of F ends that after (f + 1) τ / F steps."""
        period = self.periods[fragment]
        return period - (fragment + 1) * period // len(self.windows)

    def tick(self) -> Due | None:
        """Count one local step; return what is now due, if something is."""
        self.step += 1
        if not self.is_warmup(self.step):
            self.positions = [position + 1 for position in self.positions]
        due = self.due()
        return due if due.ending or due.landing else None

    def due(self) -> Due:
        """What follows the step that was counted last."""
        kind = Sync.WARMUP if self.is_warmup(self.step) else Sync.WINDOW
        places = zip(self.fragments, self.positions, self.periods, strict=True)
        ending = (f for f, position, tau in places if self.ends(self.step, position, tau))
        landing = (f for f, at in enumerate(self.landings) if self.lands(self.step, at))
        return Due(kind, tuple(ending), tuple(landing))

    # The next three take tensors as well as ints: a graph keeps its counters in variables.

    def is_warmup(self, step: Any) -> Any:
        """Whether the ``step``-th step, counted from 1, belongs to the warm-up."""
        return step <= self._config.warmup_steps

    def ends(self, step: Any, position: Any, period: Any) -> Any:
        """Whether a window of τ steps ends with the ``step``-th, the ``position``-th in it."""
        # Not `==`: a sync that failed (a lost worker) is due again after the next step.
        return self.is_warmup(step) | (position >= period)

    def lands(self, step: Any, landing: Any) -> Any:
        """Whether what is to land after the step ``landing`` does so after the ``step``-th."""
        return (landing > 0) & (step >= landing)

    @property
    def warming_up(self) -> bool:
        """Whether the next step belongs to the warm-up, so that no window is open yet."""
        return self.step < self._config.warmup_steps

    def next_period(self, fragment: int) -> int:
        """τ of the window that begins now, by γ of the last average that has landed."""
        return self._config.period(self.step, self.gammas[fragment])

    def end(
        self, kind: Sync, fragments: Iterable[int], periods: Mapping[int, int] | None = None
    ) -> None:
        """Count what a sync of these fragments ended: their windows, or a step of the warm-up.

        Args:
            kind: why there was one.
            fragments: whose averages have come.
            periods: τ of the windows that begin; as before if None.
        """
        for fragment in fragments:
            if kind is not Sync.WARMUP:
                self.windows[fragment] += 1
                self.positions[fragment] = 0
            self.periods[fragment] = (periods or {}).get(fragment, self.periods[fragment])
        if kind is not Sync.WINDOW:
            self.positions = [self.first_position(fragment) for fragment in self.fragments]

    def launch(self, fragment: int, periods: Mapping[int, int] | None = None) -> None:
        """Count that its window has ended, and when its average lands; ``periods`` as in `end`."""
        self.end(Sync.WINDOW, [fragment], periods)
        self.landings[fragment] = self.step + self._config.overlap_steps

    def reopen(self, fragment: int, period: int) -> None:
        """Take `launch` back, since it failed: due again after the next step.

        Args:
            fragment: whose.
            period: τ of the window that ended.
        """
        self.windows[fragment] -= 1
        self.positions[fragment] += period
        self.periods[fragment] = period
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
