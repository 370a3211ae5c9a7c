"""Collectives that must not be cut in two: one thread at a time, and to their end.

What a rank does between the first and the last collective of a sync, the other ranks do too. If it
stops in there, they have a new model and it has an old one, or a half of each.
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
    """What a thread that is in a critical section knows."""

    alike: BaseException | None = None


class CriticalSections:
    """Those of one process.

    A rank that is refused here raises alone: which of its threads comes first, or when it is
    interrupted, no other rank can know. The others then wait for it until it ends.

    Args:
        rank: tells this process's rank.
        errors: those of a collective that failed, which fails on every rank.
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
        """Around collectives of ``owner`` and what it does with what they bring.

        Ctrl-C is held back until the end; a second one is not. What else breaks the block off
        leaves tensors on the wire that nothing can call back, so no section of this process is
        entered afterwards.

        Args:
            owner: whatever communicates.
            where: "the sync after step 12", for messages.
            unnamed: whether other owners' collectives have the same names, so that nothing but
                the order of calls pairs them with the other ranks'.

        Raises:
            RuntimeError: a section was broken off in this process; another thread is in one of
                ``owner``'s; or unnamed collectives come from two living threads, in which case
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
        """The same in a thread that was started for it, while steps go on in ``owner``'s own."""
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
        """Around what raises on all ranks or on none, before anything has changed."""
        try:
            yield
        except (ValueError, RuntimeError, ArithmeticError) as error:
            self._here.alike = error
            raise

    def check_whole(self, owner: Any) -> None:
        """Raise RuntimeError if a section of ``owner`` was broken off: its state may be torn."""
        if owner in self._torn:
            raise RuntimeError(self._refused)

    def check(self, owner: Any) -> None:
        """Raise what `entered` would raise for ``owner``, before anything is done in vain."""
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
                # Whatever one of the two has agreed on may be with another optimizer's ranks.
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
        """Hold one Ctrl-C back, where Python's own handler would raise it here."""
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
