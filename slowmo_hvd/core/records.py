"""What happened in the syncs, for a person or a logger to read."""

import dataclasses
from typing import Any

from slowmo_hvd.core.schedule import Sync


@dataclasses.dataclass(frozen=True)
class SyncRecord:
    """One sync, as this worker saw it.

    Attributes:
        kind: why it happened.
        step: local steps attempted when it happened, counted from 1.
        window: t, the window that it ended (the window to come, while warming up), of the first
            of its fragments.
        workers: how many workers contributed to the average.
        learning_rates: γ of each parameter group, the window's mean over steps and workers; of
            several fragments, those of each in turn.
        bytes: payload that this worker handed to allreduce, in bytes. A ring allreduce puts
            about 2 (m - 1) / m times as much on this worker's link.
        seconds: wall time for which training stood still.
        waiting: of these, the seconds that went by in waiting for slower workers and the wire.
        hidden: seconds for which it was under way while training went on, with an overlap.
        displacement_norm: Euclidean norm of d̄, the averaged displacement, over all parameters.
        drift: how far the workers had drifted apart: the root mean square over workers of the
            Euclidean distance of x^i_{t,τ} from their mean. It is the difference of two sums of
            squares: below some 3e-4 of the norm it says "none".
        excluded: the ranks that were left out of the average, their weights not being finite, or
            as outliers.
        fragments: which parts of the model were synchronised, from 0.
        sync_period: τ of the window that it ended, or cut short, of the first of its fragments.
        clipped: what the averaged displacement was multiplied by, by ``clip_displacement``, of the
            fragment where it was most; 1 where it was short enough. ``displacement_norm`` is that
            of before.
        samples: Σ n, what `contribute` has counted on the workers that are in the average, by which
            it is weighted, of the first of its fragments; 0 where nobody counts.
        since_last: seconds since the record before, of any fragment; 0 in the first one.
        slow_lr: α of the outer step; 1 while warming up, where the plain mean is taken.
        slow_momentum: β; 0 while warming up.
        outliers: those of ``excluded`` that had moved too far, by ``outlier_factor``.
    """

    kind: Sync
    step: int
    window: int
    workers: int
    learning_rates: tuple[float, ...]
    bytes: int
    seconds: float
    displacement_norm: float
    drift: float
    excluded: tuple[int, ...] = ()
    fragments: tuple[int, ...] = (0,)
    waiting: float = 0.0
    hidden: float = 0.0
    sync_period: int = 0
    slow_lr: float = 1.0
    slow_momentum: float = 0.0
    outliers: tuple[int, ...] = ()
    clipped: float = 1.0
    samples: int = 0
    since_last: float = 0.0

    def asdict(self) -> dict[str, Any]:
        """All of it as builtins, for JSON."""
        return dataclasses.asdict(self) | {"kind": self.kind.value}


@dataclasses.dataclass(frozen=True)
class SyncStats:
    """All syncs of one optimizer in this process so far.

    Attributes:
        syncs: how many there were.
        bytes: payload that this worker handed to allreduce, in bytes.
        seconds: wall time for which training stood still.
        waiting: of these, the seconds that went by in waiting.
        hidden: seconds for which they were under way while training went on.
        last: the latest one, or None before the first.
    """

    syncs: int = 0
    bytes: int = 0
    seconds: float = 0.0
    last: SyncRecord | None = None
    waiting: float = 0.0
    hidden: float = 0.0

    def add(self, record: SyncRecord) -> "SyncStats":
        """These figures with ``record`` counted in."""
        return SyncStats(
            syncs=self.syncs + 1,
            bytes=self.bytes + record.bytes,
            seconds=self.seconds + record.seconds,
            last=record,
            waiting=self.waiting + record.waiting,
            hidden=self.hidden + record.hidden,
        )
