"""The programs of the system that this needs, and what to do where they are missing."""

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

#: The Debian package of each program.
PACKAGES = {
    "ip": "iproute2",
    "tc": "iproute2",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}  # their bits


class NetworkError(RuntimeError):
    """The network could not be made, or a command on it failed."""


def missing() -> str:
    """What this machine lacks, in one sentence; empty where nothing is missing."""
    status = Path("/proc/self/status")
    capabilities = "0"
    if status.exists():  # else it is not Linux
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        capabilities = fields["CapEff"]
    absent = [name for name in PACKAGES if _find(name) is None]
    return sentence(is_privileged(os.geteuid(), capabilities), absent)


def is_privileged(user: int, capabilities: str) -> bool:
    """Whether a process may make network namespaces and log in as root.

    Args:
        user: its effective user.
        capabilities: its effective capabilities, as /proc has them.
    """
    held = int(capabilities, base=16)
    return user == 0 and all(held >> bit & 1 for bit in _CAPABILITIES.values())


def sentence(privileged: bool, absent: Iterable[str]) -> str:
    """What is missing and how to get it; empty where nothing is missing.

    Args:
        privileged: whether this is root, with the capabilities of one.
        absent: the programs that were not found.
    """
    names = list(absent)
    needs = [] if privileged else ["root on Linux (in a container: one started with --privileged)"]
    if names:
        packages = " ".join(dict.fromkeys(PACKAGES[name] for name in names))
        needs.append(f"{', '.join(names)} (apt-get install {packages})")
    return f"benchmarks.network needs {' and '.join(needs)}" if needs else ""


def path_of(name: str) -> str:
    """Where a program is."""
    path = _find(name)
    if path is None:
        raise NetworkError(sentence(True, [name]))
    return path


def output(name: str, *arguments: str) -> str:
    """What a program prints.

    Raises:
        NetworkError: it failed; this says with which words.
    """
    done = subprocess.run(
        [path_of(name), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise NetworkError(f"`{name} {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


def _find(name: str) -> str | None:
    """Not every root has the folders of the system's programs in its PATH."""
    return shutil.which(
        name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    )
