"""The warning where workers pull apart: once, after ten bad windows in a row, and not by chance."""

import pytest

from slowmo_hvd.core.drift import PATIENCE, DriftWatch
from slowmo_hvd.core.records import SyncRecord
from slowmo_hvd.core.schedule import Sync


def record(
    drift: float, norm: float = 1.0, workers: int = 2, kind: Sync = Sync.WINDOW
) -> SyncRecord:
    return SyncRecord(kind, 12, 0, workers, (0.1,), 0, 0.0, norm, drift)


def told(*records: SyncRecord) -> list[int]:
    """After which of these there is a warning."""
    watch = DriftWatch()
    return [place for place, each in enumerate(records) if watch.see(each)]


def test_ten_bad_windows_in_a_row_are_told_once() -> None:
    assert told(*[record(2.0)] * 30) == [PATIENCE - 1]


def test_the_sentence_has_the_figures_and_what_to_look_at() -> None:
    watch = DriftWatch()
    (sentence,) = [said for _ in range(PATIENCE) for said in watch.see(record(2.0))]
    assert "drift 2, displacement 1" in sentence
    assert "share of the same data and labels" in sentence


def test_a_good_window_begins_the_count_anew() -> None:
    nine = [record(2.0)] * (PATIENCE - 1)
    assert told(*nine, record(1.0), *nine) == []


@pytest.mark.parametrize(("workers", "by_chance"), [(2, 1.0), (5, 2.0), (17, 4.0)])
def test_independent_noise_is_no_drift(workers: int, by_chance: float) -> None:
    assert told(*[record(1.1 * by_chance, workers=workers)] * 20) == []
    assert told(*[record(1.3 * by_chance, workers=workers)] * 20) == [PATIENCE - 1]


def test_the_end_of_a_training_where_all_falls_is_no_drift() -> None:
    assert told(record(5.0, norm=10.0), *[record(2.0)] * 30) == []


def test_a_lone_worker_and_syncs_that_end_no_window_do_not_count() -> None:
    assert told(*[record(2.0, workers=1)] * 20) == []
    assert told(*[record(2.0, kind=Sync.FLUSH), record(2.0, kind=Sync.WARMUP)] * 20) == []
