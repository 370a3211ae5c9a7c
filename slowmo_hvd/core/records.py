"""What happened in the syncs, for a person or a logger to read."""

import dataclasses

from slowmo_hvd.core.schedule import Sync


@dataclasses.dataclass(frozen=True)
class SyncRecord:
    """One sync, as this worker saw it.

    Attributes:
        kind: why it happened.
        step: local steps attempted when it happened, counted from 1.
        window: t, the window that it ended (the window to come, while warming up).
        workers: how many workers contributed to the average.
        learning_rates: γ of each parameter group, the window's mean over steps and workers.
        bytes: payload that this worker handed to allreduce, in bytes. A ring allreduce puts
            about 2 (m - 1) / m times as much on this worker's link.
        seconds: wall time of the sync, the wait for slower workers included.
        displacement_norm: Euclidean norm of d̄, the averaged displacement, over all parameters.
        drift: how far the workers had drifted apart: the root mean square over workers of the
            Euclidean distance of x^i_{t,τ} from their mean. It is the difference of two sums of
            squares: below some 3e-4 of the norm it says "none".
        excluded: the ranks that were left out of the average, their weights not being finite.
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


@dataclasses.dataclass(frozen=True)
class SyncStats:
    """All syncs of one optimizer in this process so far.

    Attributes:
        syncs: how many there were.
        bytes: payload that this worker handed to allreduce, in bytes.
        seconds: wall time spent in them.
        last: the latest one, or None before the first.
    """

    syncs: int = 0
    bytes: int = 0
    seconds: float = 0.0
    last: SyncRecord | None = None

    def add(self, record: SyncRecord) -> "SyncStats":
        """These figures with ``record`` counted in."""
        return SyncStats(
            syncs=self.syncs + 1,
            bytes=self.bytes + record.bytes,
            seconds=self.seconds + record.seconds,
            last=record,
        )
