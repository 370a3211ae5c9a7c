"""Whether processes make progress: what hangs is idle, and what is slow on a busy machine is not.

Measured on two cores, as the share of one that a process's main thread takes: horovodrun 0.1%; a
rank that waits in a collective up to 2%, in a thousand looks a second whether the others are there;
a rank that computes beside seven busy processes 26%, beside fifteen 8%, and without going to sleep.
Other threads do not count, since Horovod's looks for work all the time, and takes 8% of a core.
"""

import collections
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

IDLE = 40  # seconds
FAR = 1200  # seconds; for what hangs and is busy
_TICKS = os.sysconf("SC_CLK_TCK")  # in a second


class Used(NamedTuple):
    """What a process has used: its main thread, and its children that have ended.

    Attributes:
        ticks: of the processor's time.
        sleeps: how often the main thread gave the processor back of its own.
    """

    ticks: int
    sleeps: int


class Watch:
    """Looks at some processes and all their descendants, from its making on.

    Args:
        roots: the processes' numbers, read at each look.
        idle: seconds after which they hang if none of them made progress.
        far: seconds after which they hang though they are busy.

    Attributes:
        pause: seconds between two looks.
    """

    def __init__(self, roots: Collection[int], *, idle: float = IDLE, far: float = FAR) -> None:
        self._roots = roots
        self._idle = idle
        self._far = far
        self._begun = time.monotonic()
        self.pause = min(1.0, idle / 4)
        # By count, not by the clock: a machine that stood still was not idle.
        self._looks: collections.deque[dict[tuple[int, int], Used]]
        self._looks = collections.deque([_look(roots)], maxlen=1 + round(idle / self.pause))

    def verdict(self) -> str | None:
        """ "has been idle for 40 s" or the like, once they hang; to be asked after each pause."""
        if time.monotonic() - self._begun >= self._far:
            return f"has been busy for {self._far:g} s"
        now = _look(self._roots)
        self._looks.append(now)
        if len(self._looks) < self._looks.maxlen:
            return None
        before = self._looks[0]
        if any(self._works(before.get(one, Used(0, 0)), used) for one, used in now.items()):
            return None
        return f"has been idle for {self._idle:g} s"

    def _works(self, before: Used, now: Used) -> bool:
        seconds = (now.ticks - before.ticks) / _TICKS
        if seconds >= 0.08 * self._idle:
            return True
        # What is starved takes little, but all that it gets; what waits goes back to sleep.
        return seconds >= 0.02 * self._idle and seconds >= 1e-3 * (now.sleeps - before.sleeps)


def _look(roots: Collection[int]) -> dict[tuple[int, int], Used]:
    """What each process has used; it is known by its number and the time of its start."""
    stats: dict[int, list[int]] = {}
    for process in map(int, filter(str.isdigit, os.listdir("/proc"))):
        # Without number and name, which may have spaces in it.
        if text := _of_main_thread(process, "stat"):
            stats[process] = [int(field) for field in text.rpartition(")")[2].split()[1:]]
    tree = [root for root in roots if root in stats]
    for process in tree:  # which grows
        tree += [child for child, (parent, *_) in stats.items() if parent == process]
    used = {}
    for process in tree:
        # `man proc_pid_stat` counts from 1, and the number is the first.
        start, ticks = stats[process][22 - 4], sum(stats[process][14 - 4 : 18 - 4])
        _, _, sleeps = _of_main_thread(process, "status").partition("\nvoluntary_ctxt_switches:")
        used[process, start] = Used(ticks, int(sleeps.split()[0]) if sleeps else 0)
    return used


def _of_main_thread(process: int, file: str) -> str:
    """A file in /proc, of the thread that has the process's number; empty if it has ended."""
    try:
        return Path("/proc", str(process), "task", str(process), file).read_text()
    except OSError:
        return ""
