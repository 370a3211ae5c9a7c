"""The network: made and removed around a block, and commands that run on it."""

import atexit
import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.network import cleanup, namespaces, signals, ssh
from benchmarks.network.rates import UNSHAPED, bits_a_second
from benchmarks.network.tools import NetworkError, missing

_MOST = 250  # addresses of one network
_GRACE = 20  # seconds for horovodrun to end its ranks
_numbers = itertools.count()


class Network:
    """Hosts within this machine, for the length of a ``with`` block.

    Each is a network namespace with an sshd; one bridge joins them. Everything is removed when the
    block ends, also by an exception, SIGINT or SIGTERM; after a SIGKILL, when the next begins. A
    command that is interrupted goes on until then.

    Args:
        hosts: how many, at least 1.
        rate: of each host's link, in each direction: "unshaped", "1gbit", "100mbit" and so on.

    Attributes:
        hosts: their names; rank 0 is on the first.

    Raises:
        ValueError: an argument is none of these.
    """

    def __init__(self, hosts: int = 2, rate: str = UNSHAPED) -> None:
        if not 1 <= hosts <= _MOST:
            raise ValueError(f"the number of hosts must be from 1 to {_MOST}, not {hosts}")
        bits_a_second(rate)
        self.hosts = [f"h{number}" for number in range(1, hosts + 1)]
        self._rate = rate
        self._name = cleanup.name(os.getpid(), next(_numbers))
        self._folder = Path()
        self._started: list[subprocess.Popen[Any]] = []
        self._on_sigterm: Any = None

    def __enter__(self) -> "Network":
        """Make it.

        Raises:
            NetworkError: the machine lacks what that needs, or it failed.
        """
        if lack := missing():
            raise NetworkError(lack)
        atexit.register(self._remove)  # for a signal just before the block begins
        self._on_sigterm = signals.raise_on_sigterm()
        try:
            for network in cleanup.abandoned():
                cleanup.remove(network)
            self._folder = cleanup.make_folder(self._name)
            ssh.write_files(self._folder)
            namespaces.make(self._name, self.hosts)
            self.set_rate(self._rate)
            for host in self.hosts:
                self._started.append(ssh.start(self._name, host, self._folder))
            ssh.wait(self._started, self.hosts, self._folder)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()

    def run(
        self,
        command: Sequence[str],
        *,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> str:
        """Run a command under horovodrun, one rank on each host.

        Args:
            command: a program and its arguments. Python is the one that runs this.
            options: of horovodrun's, in addition.
            env: the environment, this process's own if None.
            timeout: seconds, after which it is ended.

        Returns:
            What horovodrun prints, in which each line tells its rank.

        Raises:
            NetworkError: a rank failed, or it was not over in time; this has the output.
        """
        done = self._run(command, options, env, capture=True, timeout=timeout)
        if done.returncode:
            raise NetworkError(f"`{' '.join(command)}` failed:\n{done.stdout}")
        return done.stdout

    def show(self, command: Sequence[str], *, options: Sequence[str] = ()) -> int:
        """Run a command as `run` does, whose output is shown as it comes; return the exit code."""
        return self._run(command, options, None, capture=False).returncode

    def set_rate(self, rate: str) -> None:
        """Change the rate of all links."""
        for host in self.hosts:
            namespaces.shape(self._name, host, rate)

    def bytes_sent(self, host: str) -> int:
        """What the host's interface has sent so far, in bytes, with headers.

        Packets that Linux leaves to the network card to cut up, which there is none of, count as
        they are: up to 64 KB with one header.
        """
        return namespaces.bytes_sent(self._name, host)

    def _run(
        self,
        command: Sequence[str],
        options: Sequence[str],
        env: Mapping[str, str] | None,
        *,
        capture: bool,
        timeout: float | None = None,
    ) -> subprocess.CompletedProcess[str]:
        places = ",".join(f"{host}:1" for host in self.hosts)
        launcher = [sys.executable, "-m", "benchmarks.network.launcher"]
        launcher += [str(ssh.client_settings(self._folder)), "--gloo", "--disable-cache"]
        launcher += ["--network-interface", namespaces.INTERFACE]
        launcher += ["-np", str(len(self.hosts)), "-H", places]
        running = subprocess.Popen(
            namespaces.inside(self._name, self.hosts[0], [*launcher, *options, *command]),
            env=_with_this_python(os.environ if env is None else env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if capture else None,
            stderr=subprocess.STDOUT if capture else None,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for us
        )
        self._started.append(running)
        try:
            printed, _ = running.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            words = f"`{' '.join(command)}` was not over after {timeout:g} seconds"
            raise NetworkError(f"{words}:\n{_end(running)}") from None
        return subprocess.CompletedProcess(running.args, running.returncode, printed)

    def _remove(self) -> None:
        with signals.ignored():
            cleanup.remove(self._name)
            for process in self._started:
                process.wait()
            self._started = []
            atexit.unregister(self._remove)
        signals.restore_sigterm(self._on_sigterm)


def _end(horovodrun: subprocess.Popen[str]) -> str:
    """End a command and its ranks; return what it has printed, unless it goes on printing."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(horovodrun.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return horovodrun.communicate(timeout=_GRACE)[0]
    return ""


def _with_this_python(env: Mapping[str, str]) -> dict[str, str]:
    """The environment, in which ``python`` is the one that runs this."""
    folder = str(Path(sys.executable).parent)
    return {**env, "PATH": os.pathsep.join([folder, env.get("PATH", os.defpath)])}
