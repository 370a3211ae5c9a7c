"""Whether processes make progress: what hangs is idle, and what is slow on a busy machine is not.

Measured on two cores, as the share of one that a process's main thread takes: a rank that waits in
a collective 0 to 2%, horovodrun 0.1%, a rank that computes beside seven busy processes 26%. Other
threads do not count, since Horovod's looks for work all the time, and takes 8% of a core.
"""

import collections
import os
import time
from collections.abc import Collection
from pathlib import Path

IDLE = 40  # seconds
FAR = 600  # seconds; for what hangs and is busy
_SHARE = 0.08  # of a core, on one main thread
_TICKS = os.sysconf("SC_CLK_TCK")  # in a second


class Watch:
    """Looks at some processes and all their descendants, from its making on.

    Args:
        roots: the processes' numbers, read at each look.
        idle: seconds after which they hang if none of them took 8% of a core.
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
        self._looks: collections.deque[dict[tuple[int, int], int]]
        self._looks = collections.deque([_used(roots)], maxlen=1 + round(idle / self.pause))

    def verdict(self) -> str | None:
        """ "has been idle for 40 s" or the like, once they hang; to be asked after each pause."""
        if time.monotonic() - self._begun >= self._far:
            return f"has been busy for {self._far:g} s"
        now = _used(self._roots)
        self._looks.append(now)
        if len(self._looks) < self._looks.maxlen:
            return None
        before = self._looks[0]
        most = max((ticks - before.get(one, 0) for one, ticks in now.items()), default=0)
        if most / _TICKS >= _SHARE * self._idle:
            return None
        return f"has been idle for {self._idle:g} s"


def _used(roots: Collection[int]) -> dict[tuple[int, int], int]:
    """The clock ticks that each process's main thread and its ended children have used.

    A process is known by its number and the time of its start.
    """
    parents: dict[int, int] = {}
    used: dict[int, tuple[int, int]] = {}
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            # Of the main thread, which has the process's number.
            stat = Path("/proc", process, "task", process, "stat").read_text()
        except OSError:  # it has ended meanwhile
            continue
        # Without number and name, which may have spaces in it; `man proc` counts from 1.
        fields = [int(field) for field in stat.rpartition(")")[2].split()[1:]]
        parent, start, ticks = fields[0], fields[18], sum(fields[10:14])
        parents[int(process)] = parent
        used[int(process)] = start, ticks
    tree = [root for root in roots if root in parents]
    for number in tree:  # which grows
        tree += [child for child, parent in parents.items() if parent == number]
    return {(number, used[number][0]): used[number][1] for number in tree}
