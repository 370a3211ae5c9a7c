"""Records of the syncs, for a person or a logger to read."""

import dataclasses
from typing import Any

from slowmo_hvd.core.schedule import Sync


@dataclasses.dataclass(frozen=True)
class SyncRecord:
    """One sync, as this worker saw it.

    Attributes:
        kind: why the sync happened.
        step: the number of local steps attempted so far, counted from 1.
        window: t, the window that ended. During the warm-up it is the window to come. With several
            fragments it is that of the first one.
        workers: the number of workers in the average.
        learning_rates: γ of each parameter group, the mean over the window's steps and over the
            workers. With several fragments, those of each fragment in turn.
        bytes: payload that this worker handed to allreduce, in bytes. A ring allreduce puts about 2
            (m - 1) / m times as much on this worker's link.
        seconds: wall time for which training stood still.
        waiting: the part of ``seconds`` spent waiting for slower workers and the wire.
        hidden: seconds for which the average was under way while training went on, with an overlap.
        displacement_norm: Euclidean norm of d̄, the averaged displacement, over all parameters in
            the sync, before ``clip_displacement``.
        drift: how far the workers had drifted apart: the root mean square over workers of the
            Euclidean distance of x^i_{t,τ} from their mean. It is computed as the difference of two
            sums of squares, so a drift below about 3e-4 of the norm cannot be told from 0.
        excluded: the ranks that were left out of the average, because their weights were not finite
            or because they were outliers.
        fragments: the parts of the model that were synchronised, counted from 0.
        sync_period: τ of the window that ended, or was cut short. With several fragments it is that
            of the first one.
        clipped: the factor by which ``clip_displacement`` multiplied the averaged displacement; 1
            if it was short enough. With several fragments it is the smallest factor.
        samples: Σ n, the number of samples that `contribute` counted on the workers in the average,
            which weights the average; 0 if nobody counts. With several fragments it is that of the
            first one.
        since_last: seconds since the previous record, of any fragment; 0 in the first one.
        slow_lr: α of the outer step; 1 during the warm-up, where the plain mean is taken.
        slow_momentum: β of the outer step; 0 during the warm-up.
        outliers: the ranks in ``excluded`` that had moved too far for ``outlier_factor``.
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
        """Return all fields as builtins, for JSON."""
        return dataclasses.asdict(self) | {"kind": self.kind.value}


@dataclasses.dataclass(frozen=True)
class SyncStats:
    """All syncs of one optimizer in this process so far.

    Attributes:
        syncs: the number of syncs.
        bytes: payload that this worker handed to allreduce, in bytes.
        seconds: wall time for which training stood still.
        waiting: the part of ``seconds`` spent waiting for slower workers and the wire.
        hidden: seconds for which averages were under way while training went on.
        last: the record of the latest sync, or None before the first one.
    """

    syncs: int = 0
    bytes: int = 0
    seconds: float = 0.0
    last: SyncRecord | None = None
    waiting: float = 0.0
    hidden: float = 0.0

    def add(self, record: SyncRecord) -> "SyncStats":
        """Return these totals with ``record`` included."""
        return SyncStats(
            syncs=self.syncs + 1,
            bytes=self.bytes + record.bytes,
            seconds=self.seconds + record.seconds,
            last=record,
            waiting=self.waiting + record.waiting,
            hidden=self.hidden + record.hidden,
        )
