"""The engines of this process, for operations on all of them at once."""

import atexit
import functools
import weakref
from typing import Protocol


class Living(Protocol):
    """The part of an `Engine` that is needed here."""

    @property
    def under_way(self) -> bool:
        """Whether an average has been launched and has not landed."""

    def wait(self) -> None:
        """Wait until nothing is on the wire, and ignore errors."""

    def land(self) -> None:
        """Land what is under way."""

    def settle(self) -> None:
        """Wait until nothing is on the wire, and raise errors."""


_engines: weakref.WeakSet[Living] = weakref.WeakSet()


def register(engine: Living) -> None:
    """Add this engine to them for as long as it lives."""
    _engines.add(engine)


def land_everywhere() -> None:
    """Land what is under way in this process, before ``hvd.join()``, after which it sends nothing.

    This is not a collective: the other ranks have launched it too, or are about to. A collective
    that this rank began after its join would count in place of a rank that has not entered it yet.
    """
    for engine in list(_engines):
        if engine.under_way:
            engine.land()


def settle_everywhere() -> None:
    """Wait until nothing is on the wire in this process, before the first thing is saved.

    It raises the same errors as `Engine.settle`. Everything that is saved together is then of the
    same age.
    """
    for engine in list(_engines):
        if engine.under_way:
            engine.settle()


@functools.cache
def wait_at_exit() -> None:
    """Make this process wait at its exit for what is under way. Further calls do nothing.

    This happens before Horovod's own exit handler, which was registered earlier and would interrupt
    it.
    """

    def wait() -> None:
        for engine in list(_engines):
            engine.wait()

    atexit.register(wait)
