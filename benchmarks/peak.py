"""The high-water mark of this process's resident set, on Linux."""

import ctypes
import gc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_CLEAR_PEAK = "5"  # as proc(5) has it: the mark is put to what is resident now


def resident() -> int:
    """The resident set in bytes, without what the C library keeps for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def peak(work: Callable[[], object]) -> int:
    """The highest resident set while ``work`` goes on, in bytes."""
    resident()
    Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
    work()
    return _status("VmHWM")


def tell(hvd: Any, moments: Iterable[tuple[str, int, int]], slow_momentum: float) -> None:
    """Print the ranks' worst of each moment.

    Args:
        hvd: the adapter.
        moments: what happens, the bytes that it adds at its peak, and the parameters' bytes.
        slow_momentum: β; without it there is only the anchor.
    """
    for moment, extra, size in moments:
        worst = max(hvd.allgather_object(extra))
        if hvd.rank() == 0:
            beyond = (worst - size * (2 if slow_momentum else 1)) / 2**20
            print(
                f"slow_momentum={slow_momentum}, {size / 1e6:.0f} MB of parameters, {moment}: "
                f"{worst / size:.2f} P, {beyond:+.0f} MiB over the slow state",
                flush=True,
            )


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
