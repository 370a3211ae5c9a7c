"""Waiting that does not end: said once, then ended, in words that name the cause and the cure."""

import gc
import logging
import threading
from collections.abc import Callable

import pytest

from slowmo_hvd.core.stall import StallWatch


class FailedError(RuntimeError):
    """Stands for Horovod's."""


class Owner:
    """Whatever communicates."""


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def set_them(warn: str = "60", end: str = "1800", disable: str = "0") -> None:
        monkeypatch.setenv("HOROVOD_STALL_CHECK_TIME_SECONDS", warn)
        monkeypatch.setenv("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", end)
        monkeypatch.setenv("HOROVOD_STALL_CHECK_DISABLE", disable)

    return set_them


def watch_that_sets(event: threading.Event) -> StallWatch:
    return StallWatch(lambda: 3, event.set, FailedError)


def test_a_wait_past_its_limit_is_ended_and_the_error_says_why_and_what_to_do(
    limits: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    limits(warn="0.001", end="0.001")
    down = threading.Event()
    watch = watch_that_sets(down)

    def collective() -> None:
        with watch.waiting(Owner(), "in the sync after step 12"):
            assert down.wait(20)
            raise ValueError("what a collective says that was shut down")

    with pytest.raises(FailedError) as raised:
        collective()
    text = str(raised.value)
    assert text.startswith("rank 3 has waited ")
    assert "for other ranks in the sync after step 12, and ends the job" in text
    assert "stopped calling step()" in text
    assert "hvd.join()" in text
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert caplog.records[0].getMessage() == text


def test_it_is_told_once_before_it_is_ended(
    limits: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    limits(warn="0.001", end="2.5")
    down = threading.Event()
    watch, owner = watch_that_sets(down), Owner()
    watch.begin(owner, "in the first step")
    assert down.wait(20)
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.ERROR]
    assert "It waits on, up to 2.5 s (HOROVOD_STALL_SHUTDOWN" in caplog.records[0].getMessage()


@pytest.mark.parametrize("changes", [{"end": "0"}, {"disable": "1"}])
def test_the_ending_and_all_of_it_can_be_turned_off_as_horovods(
    limits: Callable[..., None], changes: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    limits(**({"warn": "0.001", "end": "0.001"} | changes))
    down, other_down = threading.Event(), threading.Event()
    watch, owner = watch_that_sets(down), Owner()
    watch.begin(owner, "in the sync after step 1")
    limits(warn="0.001", end="0.001")
    other, another = watch_that_sets(other_down), Owner()
    other.begin(another, "in the sync after step 1")
    assert other_down.wait(20)  # by then the first would have ended as well
    other_down.clear()
    other.begin(another, "in the sync after step 2")
    assert other_down.wait(20)
    assert not down.is_set()
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == (0 if "disable" in changes else 1)


def test_an_error_of_horovods_is_told_with_the_place_and_any_other_as_it_is(
    limits: Callable[..., None],
) -> None:
    limits()
    watch = watch_that_sets(threading.Event())
    with (
        pytest.raises(FailedError, match="another rank has ended or failed while rank 3 was in"),
        watch.waiting(Owner(), "in the sync after step 12"),
    ):
        raise FailedError("Horovod has been shut down")
    with pytest.raises(KeyError), watch.waiting(Owner(), "in the sync after step 12"):
        raise KeyError


def test_what_has_ended_or_is_gone_is_not_waited_for(limits: Callable[..., None]) -> None:
    limits(warn="0.001", end="0.001")
    down = threading.Event()
    watch = watch_that_sets(down)
    done, dropped = Owner(), Owner()
    with watch.waiting(done, "in the sync after step 1"):
        pass
    watch.begin(dropped, "in the sync after step 2")
    down.clear()
    del dropped
    gc.collect()
    assert not watch._waits


class Clock:
    """Tells the time that the test says."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def timed(limits: Callable[..., None]) -> tuple[StallWatch, Clock, threading.Event]:
    """A watch by Horovod's limits, its clock, and what it sets when it ends the job."""
    limits()
    clock, down = Clock(), threading.Event()
    return StallWatch(lambda: 3, down.set, FailedError, clock), clock, down


def looks_at(watch: StallWatch, clock: Clock, seconds: float) -> None:
    clock.now += seconds
    watch.look()


MEGABYTE = 1_000_000


def test_before_the_link_is_known_it_may_be_one_of_10_megabits_a_second(
    timed: tuple[StallWatch, Clock, threading.Event], caplog: pytest.LogCaptureFixture
) -> None:
    watch, clock, down = timed
    owner = Owner()
    watch.begin(owner, "in the sync after step 12", size=240 * MEGABYTE)  # 192 s
    looks_at(watch, clock, 60 + 191)
    assert not caplog.records
    looks_at(watch, clock, 1)
    assert "for other ranks in the sync after step 12. Likely some rank" in caplog.messages[0]
    assert "up to 1992 s" in caplog.messages[0]
    looks_at(watch, clock, 1992 - 252 - 1)
    assert not down.is_set()
    looks_at(watch, clock, 1)
    assert down.is_set()


def test_after_the_first_weights_a_sync_may_take_ten_times_as_long_as_they_did(
    timed: tuple[StallWatch, Clock, threading.Event], caplog: pytest.LogCaptureFixture
) -> None:
    watch, clock, _ = timed
    owner = Owner()
    with watch.sending(owner, "in sending the first weights", size=240 * MEGABYTE):
        looks_at(watch, clock, 6.4)  # 300 Mbit/s
    watch.begin(owner, "in the sync after step 12", size=120 * MEGABYTE)  # half as much
    looks_at(watch, clock, 60 + 31)
    assert not caplog.records
    looks_at(watch, clock, 1)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("size", "seconds"), [(240 * MEGABYTE, 1000.0), (1000, 50.0)])
def test_neither_a_crawling_link_nor_a_small_collective_makes_it_more_patient(
    size: int,
    seconds: float,
    timed: tuple[StallWatch, Clock, threading.Event],
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch, clock, _ = timed
    owner = Owner()
    with watch.sending(owner, "in sending the first weights", size=size):
        clock.now += seconds
    watch.begin(owner, "in the sync after step 12", size=240 * MEGABYTE)
    looks_at(watch, clock, 60 + 191)
    assert not caplog.records
    looks_at(watch, clock, 1)
    assert len(caplog.records) == 1


def test_where_all_ranks_are_there_the_link_is_blamed_and_the_wait_around_goes_on(
    timed: tuple[StallWatch, Clock, threading.Event], caplog: pytest.LogCaptureFixture
) -> None:
    watch, clock, _ = timed
    owner = Owner()
    with watch.waiting(owner, "in the first step", warn_after=10):
        looks_at(watch, clock, 9)
        with watch.sending(owner, "in sending the first weights", size=240 * MEGABYTE):
            looks_at(watch, clock, 60 + 192)
        assert [message.partition(". ")[2] for message in caplog.messages] == [
            "All ranks were there when it began, so likely a link is slow, or some rank has died. "
            "It waits on, up to 1992 s (HOROVOD_STALL_SHUTDOWN_TIME_SECONDS)"
        ]
        looks_at(watch, clock, 9)
        assert len(caplog.records) == 1
        looks_at(watch, clock, 1)
        assert "in the first step. Likely some rank has stopped calling" in caplog.messages[1]


def test_an_error_in_a_part_of_a_wait_is_told_with_the_place_of_the_part_alone(
    timed: tuple[StallWatch, Clock, threading.Event],
) -> None:
    watch, _, _ = timed
    owner = Owner()
    with (
        pytest.raises(FailedError, match="failed while rank 3 was in sending the fi") as raised,
        watch.waiting(owner, "in the first step"),
        watch.sending(owner, "in sending the first weights", size=0),
    ):
        raise FailedError("Horovod has been shut down")
    assert "in the first step" not in str(raised.value)
