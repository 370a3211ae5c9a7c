"""The engines of this process, for what is done to all of them at once."""

import atexit
import functools
import weakref
from typing import Protocol


class Living(Protocol):
    """What of an `Engine` is needed here."""

    @property
    def under_way(self) -> bool:
        """Whether an average has been launched, and has not landed."""

    def wait(self) -> None:
        """Until nothing is on the wire, whatever becomes of it."""

    def land(self) -> None:
        """Land what is under way."""

    def settle(self) -> None:
        """Wait, and raise what went wrong."""


_engines: weakref.WeakSet[Living] = weakref.WeakSet()


def register(engine: Living) -> None:
    """Count this one among them for as long as it lives."""
    _engines.add(engine)


def land_everywhere() -> None:
    """Land what is under way in this process: before ``hvd.join()``, when it sends nothing more.

    Not a collective: the other ranks have launched it too, or are about to. What began after the
    join would count for a rank that is still missing.
    """
    for engine in list(_engines):
        if engine.under_way:
            engine.land()


def settle_everywhere() -> None:
    """Wait until nothing is on the wire in this process, before the first thing is saved.

    Raises as `Engine.settle`: what is saved together is then as old, all of it.
    """
    for engine in list(_engines):
        if engine.under_way:
            engine.settle()


@functools.cache
def wait_at_exit() -> None:
    """Have this process end after what is under way; once.

    Before Horovod's own end, which was registered before and would break it off.
    """

    def wait() -> None:
        for engine in list(_engines):
            engine.wait()

    atexit.register(wait)
