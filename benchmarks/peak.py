"""The high-water mark of this process's resident set, on Linux."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

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


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
