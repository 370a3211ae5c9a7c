"""What a rank can see of itself and of the others without any contender's help.

All ranks share the machine's files, so they meet and report through a folder.
"""

import json
import time
from pathlib import Path
from typing import Any

_PAUSE = 0.002


class Place:
    """The folder of one job.

    Args:
        folder: it, which is there and was empty when the job began.
        rank: of this process.
        ranks: how many there are.
    """

    def __init__(self, folder: Path, rank: int, ranks: int) -> None:
        self._folder = folder
        self._rank = rank
        self._ranks = ranks
        self._meetings = 0

    def meet(self) -> None:
        """Wait for the others."""
        self._meetings += 1
        mark = f"met-{self._meetings}-"
        (self._folder / f"{mark}{self._rank}").touch()
        while not all((self._folder / f"{mark}{rank}").exists() for rank in range(self._ranks)):
            if not self._folder.exists():
                raise RuntimeError("the job is over, and this rank was not told")
            time.sleep(_PAUSE)

    def report(self, result: dict[str, Any]) -> None:
        """Leave this rank's result, whole or not at all."""
        path = self._folder / f"rank-{self._rank}.json"
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(result))
        unfinished.replace(path)


def reports(folder: Path) -> list[dict[str, Any]]:
    """What the ranks of a job have left, in their order."""
    paths = folder.glob("rank-*.json")
    ordered = sorted(paths, key=lambda path: int(path.stem.partition("-")[2]))
    return [json.loads(path.read_text()) for path in ordered]


def bytes_sent(interface: str) -> int:
    """What this host's interface has sent, as ``Network.bytes_sent`` has it from outside."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == interface:
            return int(counts.split()[8])
    raise ValueError(f"there is no interface {interface!r}")


def peak_memory() -> int:
    """The most bytes that this process has had in memory, its high-water mark."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError("this kernel tells no VmHWM")
