"""Waiting for ranks that do not come: said after a minute, ended after half an hour.

Horovod's own check of this kind says nothing over Gloo, so here is one, with Horovod's variables:
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
_CAUSE = (
    "Likely some rank has stopped calling step(): it is out of batches (then end every rank with "
    "hvd.join()), trains with another process set, skips a step() or a flush() that others take, "
    "is stuck in its input, or has died"
)


@dataclasses.dataclass
class _Wait:
    where: str
    since: float
    warn_after: float
    told: bool = False
    ended: str = ""


class StallWatch:
    """Looks, from a thread of its own, how long this process has been in its collectives.

    A collective blocks the thread that is in it, in TensorFlow inside the graph.

    Args:
        rank: tells this process's rank.
        shut_down: ends all collectives on all ranks: ``hvd.shutdown``.
        error: Horovod's error for a collective that failed.
    """

    def __init__(
        self, rank: Callable[[], int], shut_down: Callable[[], None], error: type[Exception]
    ) -> None:
        self._rank = rank
        self._shut_down = shut_down
        self._error = error
        # Weak: what is dropped inside a collective that failed never ends its wait.
        self._waits: weakref.WeakKeyDictionary[Any, _Wait] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._ending = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self, owner: Any, where: str, *, warn_after: float | None = None) -> None:
        """Note that ``owner`` enters a collective; it is in one at a time.

        Args:
            owner: whatever communicates.
            where: "in the sync after step 12", for the message.
            warn_after: seconds, if sooner than after other collectives.
        """
        if self._thread is None:
            self._start()
        warn_after = self._warn_after if warn_after is None else min(warn_after, self._warn_after)
        with self._lock:
            self._waits[owner] = _Wait(where, time.monotonic(), warn_after)

    def end(self, owner: Any) -> None:
        """Note that ``owner`` is out of its collective."""
        with self._lock:
            self._waits.pop(owner, None)

    @contextlib.contextmanager
    def waiting(self, owner: Any, where: str, *, warn_after: float | None = None) -> Iterator[None]:
        """`begin` and `end` around a block, whose error then says what happened.

        Raises:
            HorovodInternalError: the wait was ended here, or another rank ended or failed. One
                that ``hvd.elastic.run`` takes for a reason to begin again from the last commit.
        """
        self.begin(owner, where, warn_after=warn_after)
        wait = self._waits[owner]
        try:
            yield
        except Exception as error:
            if wait.ended:
                self._let_it_end()
                raise self._error(wait.ended) from error
            if isinstance(error, self._error):
                raise self._error(
                    f"another rank has ended or failed while rank {self._rank()} was {where}. If "
                    "it failed, its own output says why; if it ran out of batches, end every rank "
                    f"with hvd.join(). Horovod's words: {error}"
                ) from error
            raise
        finally:
            self.end(owner)

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
            with self._lock:
                waits = list(self._waits.values())
            for wait in waits:
                self._look_at(wait, time.monotonic() - wait.since)

    def _look_at(self, wait: _Wait, seconds: float) -> None:
        waited = f"rank {self._rank()} has waited {seconds:.0f} s for other ranks {wait.where}"
        if self._end_after and seconds >= self._end_after and not wait.ended:
            # Horovod shuts down at exit too, and two shutdowns at once hang: the last to be
            # registered is the first to be called.
            atexit.register(self._let_it_end)
            with self._ending:
                wait.ended = f"{waited}, and ends the job. {_CAUSE}"
                _logger.error(wait.ended)
                self._shut_down()
        elif seconds >= wait.warn_after and not wait.told:
            wait.told = True
            limit = f"up to {self._end_after:g} s" if self._end_after else "without a limit"
            _logger.warning(
                "%s. %s. It waits on, %s (HOROVOD_STALL_SHUTDOWN_TIME_SECONDS)",
                waited,
                _CAUSE,
                limit,
            )

    def _let_it_end(self) -> None:
        """Wait until a shutdown that has begun is over."""
        with self._ending:
            pass


def _seconds(name: str, default: float) -> float:
    """The variable's number; 0 where it holds none, as Horovod reads it."""
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        return float(text)
    except ValueError:
        return 0.0
