"""When to synchronise what: exactly after steps τ, 2τ, 3τ, and after each step of the warm-up.

If τ is a function, each window has its own τ, which is computed when the window begins.

With fragments, each fragment has its own windows. They also have τ steps, but begin at different
steps. With an overlap, a window's average is launched when the window ends, and lands some steps
later.

Everything here is a counter that every rank advances in the same way, so every rank gives the same
answers. This is why a rank can enter a collective without asking the others first.
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
    FLUSH = "flush"  #: before τ local steps, because `flush` was called; otherwise like WINDOW


class Due(NamedTuple):
    """What follows a step.

    Attributes:
        kind: why to synchronise.
        ending: the fragments whose windows end, to be launched or synchronised at once.
        landing: the fragments whose averages land.
    """

    kind: Sync
    ending: tuple[int, ...]
    landing: tuple[int, ...]


def in_flight(landings: Iterable[Any]) -> list[int]:
    """The fragments whose averages have not landed, given the step after which each one lands."""
    return [fragment for fragment, landing in enumerate(landings) if int(landing)]


class Schedule:
    """The τ-period schedule of Algorithm 1, preceded by a warm-up.

    Attributes:
        step: the number of local steps attempted so far, including those of the warm-up.
        windows: t of each fragment, the outer step under way.
        positions: k of each fragment, the number of local steps attempted in its window,
            0 <= k <= τ. In the first window it begins at a higher number, so that the fragments'
            windows end one after the other.
        periods: τ of each fragment's window.
        gammas: γ, as in `SlowMoConfig.period`, of each fragment's last average that has landed; 0
            before the first one.
        landings: the step after which each fragment's average lands; 0 if none is under way.
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
        """The numbers of all fragments."""
        return range(len(self.windows))

    def first_position(self, fragment: int) -> int:
        """Where a first window begins. That of fragment f of F ends after (f + 1) τ / F steps."""
        period = self.periods[fragment]
        return period - (fragment + 1) * period // len(self.windows)

    def tick(self) -> Due | None:
        """Count one local step. Return what is now due, or None."""
        self.step += 1
        if not self.is_warmup(self.step):
            self.positions = [position + 1 for position in self.positions]
        due = self.due()
        return due if due.ending or due.landing else None

    def due(self) -> Due:
        """What is due after the step that was counted last."""
        kind = Sync.WARMUP if self.is_warmup(self.step) else Sync.WINDOW
        places = zip(self.fragments, self.positions, self.periods, strict=True)
        ending = (f for f, position, tau in places if self.ends(self.step, position, tau))
        landing = (f for f, at in enumerate(self.landings) if self.lands(self.step, at))
        return Due(kind, tuple(ending), tuple(landing))

    # The next three also take tensors, because a graph keeps its counters in variables.

    def is_warmup(self, step: Any) -> Any:
        """Whether step number ``step``, counted from 1, belongs to the warm-up."""
        return step <= self._config.warmup_steps

    def ends(self, step: Any, position: Any, period: Any) -> Any:
        """Whether a window of τ steps ends with this step, which is number ``position`` in it."""
        # Not `==`: a sync that failed (a lost worker) is due again after the next step.
        return self.is_warmup(step) | (position >= period)

    def lands(self, step: Any, landing: Any) -> Any:
        """Whether an average that is due after step ``landing`` lands after this step."""
        return (landing > 0) & (step >= landing)

    @property
    def warming_up(self) -> bool:
        """Whether the next step belongs to the warm-up, so that no window is open yet."""
        return self.step < self._config.warmup_steps

    def next_period(self, fragment: int) -> int:
        """τ of the window that begins now, given γ of the last average that has landed."""
        return self._config.period(self.step, self.gammas[fragment])

    def end(
        self, kind: Sync, fragments: Iterable[int], periods: Mapping[int, int] | None = None
    ) -> None:
        """Count what a sync of these fragments ended: their windows, or a step of the warm-up.

        Args:
            kind: why there was a sync.
            fragments: the fragments whose averages have arrived.
            periods: τ of the windows that begin; if None, it stays as before.
        """
        for fragment in fragments:
            if kind is not Sync.WARMUP:
                self.windows[fragment] += 1
                self.positions[fragment] = 0
            self.periods[fragment] = (periods or {}).get(fragment, self.periods[fragment])
        if kind is not Sync.WINDOW:
            self.positions = [self.first_position(fragment) for fragment in self.fragments]

    def launch(self, fragment: int, periods: Mapping[int, int] | None = None) -> None:
        """Count a window's end, and note when its average lands. ``periods`` is as in `end`."""
        self.end(Sync.WINDOW, [fragment], periods)
        self.landings[fragment] = self.step + self._config.overlap_steps

    def reopen(self, fragment: int, period: int) -> None:
        """Undo a `launch` that failed. It is due again after the next step.

        Args:
            fragment: the fragment that was launched.
            period: τ of the window that ended.
        """
        self.windows[fragment] -= 1
        self.positions[fragment] += period
        self.periods[fragment] = period
        self.landings[fragment] = 0

    def land(self, fragment: int) -> None:
        """Count that a fragment's average has landed."""
        self.landings[fragment] = 0


@dataclasses.dataclass
class MeanLearningRate:
    """γ_t of one parameter group: the mean of its learning rate over a window's steps.

    It equals the paper's γ_t if the learning rate is constant in the window, and it is finite for
    schedules that start or end at 0. ``total`` is a tensor if the learning rate is one.
    """

    total: Any = 0.0
    steps: int = 0

    def add(self, lr: Any, steps: int = 1) -> None:
        """Count one step at learning rate ``lr``, or several whose learning rates sum to ``lr``."""
        self.total = self.total + lr  # not +=: a tensor learning rate must stay the optimizer's
        self.steps += steps

    @property
    def mean(self) -> float:
        """γ_t, or 0 if the group took no step."""
        return float(self.total) / self.steps if self.steps else 0.0

    def clear(self) -> None:
        """Begin a new window."""
        self.total, self.steps = 0.0, 0
