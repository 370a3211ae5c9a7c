"""One sshd on each host, which lets in only who has the network's own key."""

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.network.namespaces import inside
from benchmarks.network.tools import NetworkError, output, path_of

_SECONDS = 30  # for all sshds to listen
_RUNNING = Path("/run/sshd")  # sshd's, which is made at boot only where sshd is a service


def write_files(folder: Path) -> None:
    """Write the keys and the settings of sshd and ssh into an empty folder of root's alone."""
    for key in ("host", "user"):
        output("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / key))
    _write(
        folder / "sshd_config",
        f"HostKey {folder}/host",
        f"AuthorizedKeysFile {folder}/user.pub",
        "AuthenticationMethods publickey",
        "PermitRootLogin prohibit-password",
        "StrictModes no",  # it would look at the folder above too, which anyone may write to
        "UsePAM no",
        "LogLevel ERROR",
    )
    _write(
        client_settings(folder),
        f"IdentityFile {folder}/user",
        "IdentitiesOnly yes",
        "IdentityAgent none",
        "UserKnownHostsFile /dev/null",  # else the hosts would be noted in the user's home
        "GlobalKnownHostsFile /dev/null",
        "LogLevel ERROR",
    )


def client_settings(folder: Path) -> Path:
    """The settings that ssh has to be given."""
    return folder / "ssh_config"


def start(network: str, host: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start the sshd of a host."""
    _RUNNING.mkdir(mode=0o755, exist_ok=True)
    settings = ["-f", str(folder / "sshd_config"), "-o", f"PidFile={_pid_file(folder, host)}"]
    with _log(folder, host).open("wb") as log:
        return subprocess.Popen(
            inside(network, host, [path_of("sshd"), "-D", "-e", *settings]),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for us
        )


def wait(running: Sequence[subprocess.Popen[Any]], hosts: Sequence[str], folder: Path) -> None:
    """Wait until the hosts' sshds listen.

    Raises:
        NetworkError: one does not.
    """
    deadline = time.monotonic() + _SECONDS
    for host, sshd in zip(hosts, running, strict=True):
        while not _pid_file(folder, host).exists():  # written once it listens
            if sshd.poll() is not None or time.monotonic() > deadline:
                log = _log(folder, host).read_text().strip()
                raise NetworkError(f"the sshd of {host} does not start: {log or 'no reason given'}")
            time.sleep(0.01)


def _pid_file(folder: Path, host: str) -> Path:
    return folder / f"{host}.pid"


def _log(folder: Path, host: str) -> Path:
    return folder / f"{host}.log"


def _write(path: Path, *lines: str) -> None:
    path.write_text("\n".join([*lines, ""]))
