"""When to synchronise: after steps τ, 2τ, 3τ, exactly, and after every step of the warm-up.

Everything here is a counter that every rank advances alike, so that every rank answers alike:
this is what lets a rank enter a collective without asking the others first.
"""

import dataclasses
import enum
from typing import Any


class Sync(enum.Enum):
    """Why the workers synchronise."""

    WARMUP = "warmup"  #: after a warm-up step: a plain average
    WINDOW = "window"  #: after τ local steps: an average and the slow momentum step
    FLUSH = "flush"  #: before τ local steps, at the user's word; otherwise like WINDOW


@dataclasses.dataclass
class Schedule:
    """The τ-period schedule of Algorithm 1, preceded by a warm-up.

    Attributes:
        sync_period: τ.
        warmup_steps: the number of first steps that are each followed by a sync.
        step: local steps attempted so far, those of the warm-up included.
        window: t, the outer step under way.
        position: k, the local steps attempted in this window, 0 <= k <= τ.
    """

    sync_period: int
    warmup_steps: int = 0
    step: int = 0
    window: int = 0
    position: int = 0

    def tick(self) -> Sync | None:
        """Count one local step; return the sync that is now due, if one is."""
        self.step += 1
        if self.is_warmup(self.step):
            return Sync.WARMUP
        self.position += 1
        return Sync.WINDOW if self.is_due(self.step, self.position) else None

    # The next two take tensors as well as ints: a graph keeps its counters in variables.

    def is_warmup(self, step: Any) -> Any:
        """Whether the ``step``-th step, counted from 1, belongs to the warm-up."""
        return step <= self.warmup_steps

    def is_due(self, step: Any, position: Any) -> Any:
        """Whether a sync follows the ``step``-th step, the ``position``-th of its window."""
        # Not `==`: a sync that failed (a lost worker) is due again after the next step.
        return self.is_warmup(step) | (position >= self.sync_period)

    @property
    def warming_up(self) -> bool:
        """Whether the next step belongs to the warm-up, so that no window is open yet."""
        return self.step < self.warmup_steps

    def end(self, sync: Sync) -> None:
        """Count what ``sync`` ended: a window, or nothing while warming up."""
        if sync is not Sync.WARMUP:
            self.window += 1
            self.position = 0


@dataclasses.dataclass
class MeanLearningRate:
    """γ_t of one parameter group: the mean of its learning rate over a window's steps.

    Equal to the paper's γ_t wherever the learning rate is constant in a window, and finite for
    schedules that start or end at 0. ``total`` may be a tensor where the learning rate is one.
    """

    total: Any = 0.0
    steps: int = 0

    def add(self, lr: Any) -> None:
        """Count one step taken at learning rate ``lr``."""
        self.total = self.total + lr  # not +=: a tensor learning rate must stay the optimizer's
        self.steps += 1

    @property
    def mean(self) -> float:
        """γ_t, or 0 where the group took no step."""
        return float(self.total) / self.steps if self.steps else 0.0

    def clear(self) -> None:
        """Begin a window."""
        self.total, self.steps = 0.0, 0
