"""What is counted of the syncs."""

import dataclasses

import pytest

from slowmo_hvd.core.records import SyncRecord, SyncStats
from slowmo_hvd.core.schedule import Sync


def record(step: int, payload: int, seconds: float) -> SyncRecord:
    return SyncRecord(
        kind=Sync.WINDOW,
        step=step,
        window=step // 3,
        workers=2,
        learning_rates=(0.1, 0.2),
        bytes=payload,
        seconds=seconds,
        displacement_norm=1.0,
        drift=0.5,
    )


def test_before_the_first_sync_all_is_zero() -> None:
    assert SyncStats() == SyncStats(syncs=0, bytes=0, seconds=0.0, last=None)


def test_syncs_add_up_and_the_latest_is_kept() -> None:
    first, second = record(3, 400, 0.25), record(6, 100, 0.5)
    assert SyncStats().add(first).add(second) == SyncStats(2, 500, 0.75, second)


def test_figures_that_were_read_do_not_change_later() -> None:
    before = SyncStats()
    before.add(record(3, 400, 0.25))
    assert before == SyncStats()
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.syncs = 1  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        record(3, 400, 0.25).bytes = 0  # type: ignore[misc]
