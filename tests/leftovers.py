"""What a run has left behind: processes are known by a mark in their environment."""

import time
from pathlib import Path

MARK = "SLOWMO_TEST_RUN"  # in the environment of all that a nested run starts, and their children


def left_over(mark: str) -> list[str]:
    """The command lines of the processes of one nested run that still live."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                environment = (process / "environ").read_bytes()
                command = (process / "cmdline").read_bytes()
            except OSError:  # it has ended meanwhile, or is somebody else's
                continue
            if f"{MARK}={mark}".encode() in environment.split(b"\0") and command:
                found.append(command.replace(b"\0", b" ").decode())
    return found


def nothing_is_left(mark: str) -> bool:
    """Whether the run's processes end, given the moment that a killed process needs to do so."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not left_over(mark):
            return True
        time.sleep(0.1)
    return False
