"""Start programs from a test, under horovodrun or not, and never leave one behind."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from progress import FAR, IDLE, Watch

ROOT = Path(__file__).resolve().parent.parent
HOROVODRUN = [sys.executable, str(ROOT / "tests" / "horovodrun.py")]
_running: set[int] = set()  # process groups


def run(
    command: Sequence[str],
    *,
    timeout: float = IDLE,
    cwd: Path = ROOT,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process group of its own; kill all of it once it hangs.

    It hangs when it and its descendants were idle for ``timeout`` seconds (see progress.py).
    Standard error is merged into standard output. Horovod's variables of the run that this test
    is part of are taken out of the environment.
    """
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=_environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    _running.add(process.pid)
    try:
        # A little before the test that runs it, which could not show the command's output.
        watch = Watch([process.pid], idle=timeout, far=FAR - 30)
        output = None
        while output is None:
            try:
                output, _ = process.communicate(timeout=watch.pause)
            except subprocess.TimeoutExpired:
                if verdict := watch.verdict():
                    _kill(process.pid)
                    output, _ = process.communicate()
                    words = f"{' '.join(command)} {verdict}:\n{output}"
                    raise AssertionError(words) from None
    finally:
        _kill(process.pid)  # what it may have left
        _running.discard(process.pid)
    return subprocess.CompletedProcess(command, process.returncode, output)


@contextlib.contextmanager
def background(
    command: Sequence[str], *, log: Path, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command as `run` does, its output going to a file; kill what is left at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=_environment(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _running.add(process.pid)
    try:
        yield process
    finally:
        _kill(process.pid)
        process.wait()
        _running.discard(process.pid)


def horovodrun(
    ranks: int,
    *command: str,
    timeout: float = IDLE,
    cwd: Path = ROOT,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a Python script with its arguments on ``ranks`` ranks of this machine."""
    options = ["--gloo", "--disable-cache", "-np", str(ranks)]  # no ~/.horovod
    return run([*HOROVODRUN, *options, sys.executable, *command], timeout=timeout, cwd=cwd, env=env)


def kill_all() -> None:
    """End every program that is still running."""
    for group in list(_running):
        _kill(group)


def _environment(changes: dict[str, str] | None) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HOROVOD_")}
    clean["PYTHONPATH"] = str(ROOT)
    clean.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow has much to say
    return clean | (changes or {})


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
