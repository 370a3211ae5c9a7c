"""Waiting for ranks that do not come: a warning after a minute, and an end after half an hour.

Horovod's own check of this kind says nothing over Gloo. So this one uses Horovod's variables:
HOROVOD_STALL_CHECK_TIME_SECONDS, HOROVOD_STALL_SHUTDOWN_TIME_SECONDS, HOROVOD_STALL_CHECK_DISABLE.
"""

import atexit
import contextlib
import dataclasses
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

_logger = logging.getLogger("slowmo_hvd")
_NO_STEP = (
    "Likely some rank has stopped calling step(): it is out of batches (then end every rank with "
    "hvd.join()), trains with another process set, skips a step() or a flush() that others take, "
    "is stuck in its input, or has died"
)
#: Why a transfer that all ranks have begun does not end.
SLOW_LINK = "All ranks were there when it began, so likely a link is slow, or some rank has died"
_SLOWEST = 8 / 10e6  # seconds a byte: 10 Mbit/s
_MEASURABLE = 2**20  # bytes, against which a small collective takes no time
_PATIENCE = 10  # times as long as the first weights took


@dataclasses.dataclass
class _Wait:
    where: str
    cause: str
    since: float
    warn_after: float
    end_after: float
    told: bool = False
    ended: str = ""


class StallWatch:
    """Checks, from its own thread, how long this process has been in its collectives.

    A collective blocks the thread that is in it; in TensorFlow that is inside the graph. From here
    a late rank and a slow link look the same. So code that sends much says how much, and gets the
    time for it: ten times what the link was seen to need, and before that the time at 10 Mbit/s.

    Args:
        rank: returns this process's rank.
        shut_down: ends all collectives on all ranks: ``hvd.shutdown``.
        error: Horovod's error for a collective that failed.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        rank: Callable[[], int],
        shut_down: Callable[[], None],
        error: type[Exception],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rank = rank
        self._shut_down = shut_down
        self._error = error
        self._clock = clock
        self._seconds_a_byte = _SLOWEST
        # Weak, because an owner that is dropped in a failed collective never ends its wait.
        self._waits: weakref.WeakKeyDictionary[Any, _Wait] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._ending = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(
        self,
        owner: Any,
        where: str,
        *,
        warn_after: float | None = None,
        size: int = 0,
        cause: str = _NO_STEP,
    ) -> None:
        """Note that ``owner`` enters a collective. It is in one at a time.

        Args:
            owner: the object that communicates.
            where: "in the sync after step 12", for the message.
            warn_after: seconds until the warning, if sooner than for other collectives.
            size: the number of bytes that it sends, which take their time even if every rank is
                there.
            cause: the likely cause to name if it does not end.
        """
        if self._thread is None:
            self._start()
        warn_after = self._warn_after if warn_after is None else min(warn_after, self._warn_after)
        more = size * self._seconds_a_byte
        end_after = self._end_after and self._end_after + more
        wait = _Wait(where, cause, self._clock(), warn_after + more, end_after)
        with self._lock:
            self._waits[owner] = wait

    def end(self, owner: Any) -> None:
        """Note that ``owner`` has left its collective."""
        with self._lock:
            self._waits.pop(owner, None)

    @contextlib.contextmanager
    def waiting(
        self,
        owner: Any,
        where: str,
        *,
        warn_after: float | None = None,
        size: int = 0,
        cause: str = _NO_STEP,
    ) -> Iterator[None]:
        """`begin` and `end` around a block; errors of the block then say what happened.

        Raises:
            HorovodInternalError: the wait was ended here, or another rank ended or failed.
                ``hvd.elastic.run`` takes this error as a reason to begin again from the last
                commit.
        """
        outer = self._waits.get(owner)
        self.begin(owner, where, warn_after=warn_after, size=size, cause=cause)
        wait = self._waits[owner]
        try:
            yield
        except Exception as error:
            if wait.ended:
                self._let_it_end()
                raise self._error(wait.ended) from error
            if isinstance(error, self._error) and not isinstance(error.__cause__, self._error):
                raise self._error(
                    f"another rank has ended or failed while rank {self._rank()} was {where}. If "
                    "it failed, its own output says why; if it ran out of batches, end every rank "
                    f"with hvd.join(). Horovod's words: {error}"
                ) from error
            raise
        finally:
            self.end(owner)
            if outer is not None:  # this was part of a longer wait, which goes on
                with self._lock:
                    outer.since = self._clock()
                    self._waits[owner] = outer

    @contextlib.contextmanager
    def sending(self, owner: Any, where: str, *, size: int) -> Iterator[None]:
        """Like `waiting`, but all ranks are there already, so it shows how fast the link is.

        Args:
            owner: as in `begin`.
            where: as in `begin`.
            size: the number of bytes, 0 if nothing is sent.
        """
        begin = self._clock()
        with self.waiting(owner, where, size=size, cause=SLOW_LINK):
            yield
        if size >= _MEASURABLE:
            self._seconds_a_byte = min(_SLOWEST, _PATIENCE * (self._clock() - begin) / size)

    def look(self) -> None:
        """Warn of the waits that are too long now, and end those that are far too long."""
        with self._lock:
            waits = list(self._waits.values())
        for wait in waits:
            self._look_at(wait, self._clock() - wait.since)

    def _start(self) -> None:
        disabled = _seconds("HOROVOD_STALL_CHECK_DISABLE", 0) > 0
        self._warn_after = _seconds("HOROVOD_STALL_CHECK_TIME_SECONDS", 60)
        self._end_after = _seconds("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", 1800)
        self._thread = threading.Thread(target=self._watch, name="slowmo_hvd stalls", daemon=True)
        if not disabled:
            self._thread.start()

    def _watch(self) -> None:
        while True:
            time.sleep(1)
            self.look()

    def _look_at(self, wait: _Wait, seconds: float) -> None:
        waited = f"rank {self._rank()} has waited {seconds:.0f} s for other ranks {wait.where}"
        if wait.end_after and seconds >= wait.end_after and not wait.ended:
            # Horovod shuts down at exit too, and two shutdowns at once hang. The handler that is
            # registered last is called first.
            atexit.register(self._let_it_end)
            with self._ending:
                wait.ended = f"{waited}, and ends the job. {wait.cause}"
                _logger.error(wait.ended)
                self._shut_down()
        elif seconds >= wait.warn_after and not wait.told:
            wait.told = True
            limit = f"up to {round(wait.end_after, 1):g} s" if wait.end_after else "without a limit"
            _logger.warning(
                "%s. %s. It waits on, %s (HOROVOD_STALL_SHUTDOWN_TIME_SECONDS)",
                waited,
                wait.cause,
                limit,
            )

    def _let_it_end(self) -> None:
        """Wait until a shutdown that has begun is over."""
        with self._ending:
            pass


def _seconds(name: str, default: float) -> float:
    """The variable's number. As in Horovod, it is 0 if the variable holds no number."""
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        return float(text)
    except ValueError:
        return 0.0
