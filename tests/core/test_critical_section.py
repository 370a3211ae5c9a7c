"""What must not be cut in two is whole, or everything after it is refused."""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable

import pytest

from slowmo_hvd.core.critical_section import CriticalSections


class FailedError(RuntimeError):
    """Stands for Horovod's."""


class Owner:
    """Whatever communicates."""


def sections() -> CriticalSections:
    return CriticalSections(lambda: 3, FailedError)


def in_a_thread(work: Callable[[], None]) -> list[str]:
    """Run ``work`` in a thread of its own to its end; return what it raised."""
    raised: list[str] = []

    def catch() -> None:
        try:
            work()
        except RuntimeError as error:
            raised.append(str(error))

    thread = threading.Thread(target=catch, name="another")
    thread.start()
    thread.join()
    return raised


def enter(critical: CriticalSections, owner: Owner, *, unnamed: bool = False) -> None:
    with critical.entered(owner, "the sync after step 12", unnamed=unnamed):
        pass


@pytest.mark.parametrize("error", [MemoryError, SystemExit, KeyboardInterrupt, RuntimeError])
def test_what_is_broken_off_refuses_all_that_comes_after_it(error: type[BaseException]) -> None:
    critical, owner, other = sections(), Owner(), Owner()
    with pytest.raises(error), critical.entered(owner, "the sync after step 12"):
        raise error
    words = f"the sync after step 12 was broken off on rank 3 by {error.__name__}, and other ranks"
    for refused in (owner, other):
        with pytest.raises(RuntimeError, match=words):
            enter(critical, refused)
        with pytest.raises(RuntimeError, match=words):
            critical.check(refused)
    with pytest.raises(RuntimeError, match=words):
        critical.check_whole(owner)
    critical.check_whole(other)


def test_what_fails_alike_on_every_rank_refuses_nothing() -> None:
    critical, owner = sections(), Owner()
    with pytest.raises(FailedError), critical.entered(owner, "the first step"):
        raise FailedError
    with (
        pytest.raises(ValueError, match="alike"),
        critical.entered(owner, "the first step"),
        critical.alike(),
    ):
        raise ValueError("alike")
    enter(critical, owner)
    critical.check_whole(owner)


def test_an_error_after_one_that_was_alike_refuses_again() -> None:
    critical, owner = sections(), Owner()

    def work() -> None:
        with critical.entered(owner, "the first step"):
            with contextlib.suppress(ValueError), critical.alike():
                raise ValueError("alike")
            raise ValueError("of this rank alone")

    with pytest.raises(ValueError, match="alone"):
        work()
    with pytest.raises(RuntimeError, match="the first step was broken off"):
        critical.check(owner)


def test_two_threads_in_one_owner_are_refused_while_the_first_is_inside() -> None:
    critical, owner, other = sections(), Owner(), Owner()
    with critical.entered(owner, "the sync after step 12"):
        (said,) = in_a_thread(lambda: enter(critical, owner))
        assert in_a_thread(lambda: critical.check(owner)) == [said]
        assert in_a_thread(lambda: enter(critical, other)) == []
        with critical.entered(other, "the sync after step 7"):  # such as in a hook
            critical.check(owner)
    assert said == (
        "thread 'another' uses an optimizer whose step() or flush() thread 'MainThread' is in: one "
        "thread at a time"
    )
    assert in_a_thread(lambda: enter(critical, owner)) == []


def test_unnamed_collectives_come_from_one_living_thread() -> None:
    critical, owner = sections(), Owner()
    assert in_a_thread(lambda: enter(critical, Owner(), unnamed=True)) == []
    enter(critical, owner, unnamed=True)  # the other thread has ended
    assert in_a_thread(lambda: enter(critical, Owner())) == []
    (said,) = in_a_thread(lambda: enter(critical, Owner(), unnamed=True))
    assert "threads 'MainThread' and 'another' of rank 3 both make first steps" in said
    with pytest.raises(RuntimeError, match="both make first steps"):  # it may have the wrong pair
        critical.check(owner)


def test_one_interrupt_waits_for_the_end_and_is_announced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    critical, owner, done = sections(), Owner(), []

    def work() -> None:
        with critical.entered(owner, "the sync after step 12"):
            signal.raise_signal(signal.SIGINT)
            done.append("the rest")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["the rest"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.messages[0].startswith("rank 3 is interrupted in the sync after step 12, and fin")
    enter(critical, owner)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_breaks_it_off() -> None:
    critical, owner = sections(), Owner()

    def work() -> None:
        with critical.entered(owner, "the sync after step 12"):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("it went on")

    with pytest.raises(KeyboardInterrupt):
        work()
    with pytest.raises(RuntimeError, match="was broken off on rank 3 by KeyboardInterrupt"):
        critical.check(owner)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_users_own_is_left_alone() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda signum, frame: seen.append(signum))
    try:
        with sections().entered(Owner(), "the first step"):
            signal.raise_signal(signal.SIGINT)
            assert seen == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)
