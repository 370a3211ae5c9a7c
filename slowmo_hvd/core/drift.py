"""A warning if workers keep moving apart further than chance explains."""

import math

from slowmo_hvd.core.records import SyncRecord
from slowmo_hvd.core.schedule import Sync

PATIENCE = 10  #: windows in a row
_MARGIN = 1.2


class DriftWatch:
    """Looks at the record of each window.

    If the displacements of m workers were only independent noise, the workers would drift √(m - 1)
    times as far as their mean moves. A drift that is larger by a fifth shows that they pull in
    different directions. This also happens in every run near its end, but there the drift falls.
    """

    def __init__(self) -> None:
        self._largest = 0.0  # largest drift of a window so far
        self._windows = 0  # bad windows in a row
        self._told = False

    def see(self, record: SyncRecord) -> list[str]:
        """The warning after this sync, given once, or nothing. Equal on every rank."""
        if record.kind is not Sync.WINDOW or record.workers < 2 or self._told:
            return []
        self._largest = max(self._largest, record.drift)
        by_chance = math.sqrt(record.workers - 1) * record.displacement_norm
        bad = record.drift > _MARGIN * by_chance and record.drift > self._largest / 2
        self._windows = self._windows + 1 if bad else 0
        self._told = self._windows == PATIENCE
        if not self._told:
            return []
        return [
            f"after {record.step} steps the workers have drifted apart further than they moved "
            f"together for {PATIENCE} windows (drift {record.drift:.3g}, displacement "
            f"{record.displacement_norm:.3g}), and the drift does not fall: see whether each "
            "worker has its share of the same data and labels, or lower sync_period or the "
            "learning rate"
        ]
