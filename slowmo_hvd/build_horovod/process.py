"""Runs a long command with its output in a log file, one line of progress, and a time limit."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import BuildError

_POLL_SECONDS = 0.5
_LINE_SECONDS = 30.0
_TAIL_LINES = 30
_ERROR_LINES = 6
_ERROR = re.compile(r"\b(fatal )?error: |CMake Error|Could NOT find .*missing")


def say(text: str) -> None:
    """Prints one line of this command's own."""
    print(f"build_horovod: {text}", flush=True)


def percent_done(log: str) -> int | None:
    """The last '[ 42%]' that CMake printed, or None if there is none."""
    found = re.findall(r"\[\s*(\d{1,3})%\]", log)
    return int(found[-1]) if found else None


def duration(seconds: float) -> str:
    """For example '4 min 05 s'."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def tail(log: Path, lines: int = _TAIL_LINES) -> str:
    """The last lines of a log."""
    return _cut(_lines(log)[-lines:])


def excerpt(log: Path) -> str:
    """What to show of a failed command's log: the first lines that name an error, and its end.

    Several compilers run at once, so the error may stand far above the end.
    """
    lines = _lines(log)
    errors = [line for line in lines[:-_TAIL_LINES] if _ERROR.search(line)][:_ERROR_LINES]
    end = _cut(lines[-_TAIL_LINES:])
    return f"{_cut(errors)}\n...\n{end}" if errors else end


def run_logged(
    command: Sequence[str],
    *,
    label: str,
    log: Path,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    time_limit: float | None = None,
) -> None:
    """Runs a command and raises BuildError, with the end of its output, if it fails.

    Args:
        command: The command and its arguments.
        label: What is going on, for the line of progress ('compiling').
        log: The file that the output is appended to.
        environment: The command's whole environment; None is this process's own.
        cwd: The folder to run in.
        time_limit: Seconds after which the command and all it started are ended.
    """
    progress = _Progress(label)
    with log.open("ab") as stream:
        stream.write(f"\n$ {' '.join(map(str, command))}\n".encode())
        stream.flush()
        start = stream.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=cwd,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                progress.update(_percent_at_end(log, start))
                if time_limit is not None and progress.elapsed() > time_limit:
                    raise BuildError(
                        f"{label} did not end within {duration(time_limit)}; "
                        f"its output is in {log}, which ends:\n{tail(log)}"
                    )
        finally:
            end_group(process)
    progress.close(ok=process.returncode == 0)
    if process.returncode != 0:
        raise BuildError(
            f"{label} failed (exit status {process.returncode}); its whole output is in {log}, "
            f"which says:\n{excerpt(log)}"
        )


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """Ends a command that still runs and all it started: first asked, then killed."""
    if process.poll() is not None:
        return
    # horovodrun ends its workers, which have groups of their own, only when it is asked to.
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=10)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()


def _cut(lines: list[str]) -> str:
    """The lines as one text, each cut to a length that can be read."""
    return "\n".join(line[:300] for line in lines)


def _percent_at_end(log: Path, start: int) -> int | None:
    """CMake's last percentage in the log's last stretch, not before byte `start`."""
    with log.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(start, size - 64 * 1024))
        return percent_done(stream.read().decode("utf-8", errors="replace"))


class _Progress:
    """One line with the time so far: rewritten on a terminal, repeated now and then elsewhere."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._start = time.monotonic()
        self._terminal = sys.stdout.isatty()
        self._next_line = _LINE_SECONDS
        self._percent: int | None = None

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def update(self, percent: int | None) -> None:
        """Shows how far the command is, if it is time to."""
        self._percent = percent if percent is not None else self._percent
        elapsed = self.elapsed()
        if self._terminal:
            print(f"\r\033[K{self._line(elapsed)}", end="", flush=True)
        elif elapsed >= self._next_line:
            print(self._line(elapsed), flush=True)
            self._next_line = elapsed + _LINE_SECONDS

    def close(self, *, ok: bool) -> None:
        """Leaves the last word: done, or failed, and the time it took."""
        ending = "done" if ok else "failed"
        start = "\r\033[K" if self._terminal else ""
        print(
            f"{start}build_horovod: {self._label}: {ending} ({duration(self.elapsed())})",
            flush=True,
        )

    def _line(self, elapsed: float) -> str:
        percent = "" if self._percent is None else f" {self._percent}%"
        return f"build_horovod: {self._label}:{percent} ({duration(elapsed)})"
