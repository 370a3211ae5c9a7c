"""Collectives that must not be interrupted: one thread at a time, and to their end.

Between the first and the last collective of a sync, all ranks do the same. If one rank stops there,
the others have a new model and it has an old one, or half of each.
"""

import contextlib
import logging
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_logger = logging.getLogger("slowmo_hvd")


class _Here(threading.local):
    """What a thread in a critical section knows."""

    alike: BaseException | None = None


class CriticalSections:
    """The critical sections of one process.

    A rank that gets an error here gets it alone. Other ranks cannot know which of its threads comes
    first, or when it is interrupted. So they wait for it until it ends.

    Args:
        rank: returns this process's rank.
        errors: the errors of a failed collective, which fails on every rank.
    """

    def __init__(self, rank: Callable[[], int], *errors: type[Exception]) -> None:
        self._rank = rank
        self._errors = errors
        self._here = _Here()
        self._lock = threading.Lock()
        self._inside: weakref.WeakKeyDictionary[Any, threading.Thread] = weakref.WeakKeyDictionary()
        self._torn: weakref.WeakSet[Any] = weakref.WeakSet()
        self._unnamed_in: weakref.ref[threading.Thread] | None = None
        self._refused = ""

    @contextlib.contextmanager
    def entered(self, owner: Any, where: str, *, unnamed: bool = False) -> Iterator[None]:
        """Use around collectives of ``owner``, and around the use of their results.

        Ctrl-C is held back until the end; a second one is not. If something else interrupts the
        block, tensors remain on the wire that cannot be called back. So no section of this process
        can be entered after that.

        Args:
            owner: the object that communicates.
            where: "the sync after step 12", for messages.
            unnamed: whether other owners' collectives have the same names, so that only the order
                of calls matches them with those of other ranks.

        Raises:
            RuntimeError: a section was interrupted in this process; another thread is in one of
                ``owner``'s sections; or unnamed collectives come from two living threads, so that
                their order may differ between ranks.
            KeyboardInterrupt: after the end.
        """
        rank = self._rank()
        self._enter(owner, rank, unnamed=unnamed)
        try:
            with self._interrupted_afterwards(where, rank), self.watched(owner, where):
                yield
        finally:
            with self._lock:
                self._inside.pop(owner, None)

    @contextlib.contextmanager
    def watched(self, owner: Any, where: str) -> Iterator[None]:
        """The same in a thread started for it, while ``owner``'s own thread takes steps."""
        try:
            yield
        except BaseException as error:
            if not isinstance(error, self._errors) and error is not self._here.alike:
                self._torn.add(owner)
                self._refuse(
                    f"{where} was broken off on rank {self._rank()} by {type(error).__name__}, and "
                    "other ranks may have finished it: end this process, and go on from the "
                    "last checkpoint on every rank"
                )
            raise
        finally:
            self._here.alike = None

    @contextlib.contextmanager
    def alike(self) -> Iterator[None]:
        """Use around code that raises on all ranks or on none, before anything has changed."""
        try:
            yield
        except (ValueError, RuntimeError, ArithmeticError) as error:
            self._here.alike = error
            raise

    def check_whole(self, owner: Any) -> None:
        """Raise RuntimeError if a section of ``owner`` was interrupted: its state may be torn."""
        if owner in self._torn:
            raise RuntimeError(self._refused)

    def check(self, owner: Any) -> None:
        """Raise what `entered` would raise for ``owner``, before any work is wasted."""
        if self._refused:
            raise RuntimeError(self._refused)
        other = self._inside.get(owner)
        if other is not None and other is not threading.current_thread():
            raise RuntimeError(
                f"thread {threading.current_thread().name!r} uses an optimizer whose step() or "
                f"flush() thread {other.name!r} is in: one thread at a time"
            )

    def _enter(self, owner: Any, rank: int, *, unnamed: bool) -> None:
        thread = threading.current_thread()
        with self._lock:
            self.check(owner)
            other = self._unnamed_in() if unnamed and self._unnamed_in is not None else None
            if other is not None and other is not thread and other.is_alive():
                # One of the two may have agreed with another optimizer on other ranks.
                self._refused = (
                    f"threads {other.name!r} and {thread.name!r} of rank {rank} both make first "
                    "steps, in an order that may differ between the ranks, which would pair "
                    "different optimizers: make the first step of every optimizer, and "
                    "broadcast_optimizer_state, in one thread"
                )
                raise RuntimeError(self._refused)
            if unnamed:
                self._unnamed_in = weakref.ref(thread)
            self._inside[owner] = thread

    def _refuse(self, why: str) -> None:
        with self._lock:
            self._refused = self._refused or why

    @contextlib.contextmanager
    def _interrupted_afterwards(self, where: str, rank: int) -> Iterator[None]:
        """Hold back one Ctrl-C, if Python's own handler would raise it here."""
        if (
            threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        ):
            yield
            return
        interrupts: list[int] = []

        def hold_back(signum: int, frame: FrameType | None) -> None:
            if interrupts:
                signal.default_int_handler(signum, frame)
            interrupts.append(signum)
            _logger.warning(
                "rank %d is interrupted in %s, and finishes it first, with the other ranks; a "
                "second interrupt breaks it off",
                rank,
                where,
            )

        signal.signal(signal.SIGINT, hold_back)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if interrupts:
            raise KeyboardInterrupt
