"""What counts as progress of a process tree, and what as hanging."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from progress import Watch

BUSY = "while True: pass"
SLEEPING = "import time; time.sleep(300)"
BUSY_BESIDE_ITS_MAIN_THREAD = """
import threading, time

def look_for_work():
    while True:
        pass

threading.Thread(target=look_for_work, daemon=True).start()
threading.Event().wait()
"""
POLLING = "import time\nwhile True: time.sleep(1e-3)"
BUSY_BELOW = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}])"
CHILD_BY_CHILD = """
import subprocess, sys
while True:
    subprocess.run([sys.executable, '-c', 'sum(range(1_000_000))'])
"""


@pytest.fixture
def started(request: pytest.FixtureRequest) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", request.param], start_new_session=True)
    yield process.pid
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def look_on(watch: Watch, looks: int) -> str | None:
    """The first verdict in so many looks."""
    for _ in range(looks):
        time.sleep(watch.pause)
        if verdict := watch.verdict():
            return verdict
    return None


@pytest.mark.parametrize("started", [SLEEPING, POLLING, BUSY_BESIDE_ITS_MAIN_THREAD], indirect=True)
def test_who_waits_is_idle_though_it_polls_or_has_a_thread_that_does(started: int) -> None:
    assert look_on(Watch([started], idle=2), looks=100) == "has been idle for 2 s"


@pytest.mark.parametrize("started", [BUSY, BUSY_BELOW, CHILD_BY_CHILD], indirect=True)
def test_who_computes_makes_progress_itself_or_through_children(started: int) -> None:
    assert look_on(Watch([started], idle=2), looks=12) is None


@pytest.mark.parametrize("started", [BUSY], indirect=True)
def test_who_is_busy_without_end_hangs_too(started: int) -> None:
    watch = Watch([started], idle=2, far=3)
    assert look_on(watch, looks=100) == "has been busy for 3 s"


def test_what_has_ended_makes_no_progress() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    assert look_on(Watch([process.pid], idle=1), looks=100) == "has been idle for 1 s"
