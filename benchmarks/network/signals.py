"""Signals that end a process: they become exceptions, and are ignored while it tidies up."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


def raise_on_sigterm() -> Any:
    """Let SIGTERM raise SystemExit, as Ctrl-C raises KeyboardInterrupt; return what it did before.

    A handler that a program has set itself stays, and so does everything outside the main thread.
    """
    before = signal.getsignal(signal.SIGTERM)
    if before is signal.SIG_DFL and _in_main_thread():
        signal.signal(signal.SIGTERM, _exit)
    return before


def restore_sigterm(before: Any) -> None:
    """Undo `raise_on_sigterm`, which returned ``before``."""
    if signal.getsignal(signal.SIGTERM) is _exit and _in_main_thread():
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """Ignore the signals that end a process, in this one and in those that it starts."""
    if not _in_main_thread():
        yield
        return
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
