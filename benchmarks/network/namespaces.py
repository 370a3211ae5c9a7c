"""Network namespaces: one for each host, and one for the switch between them, a Linux bridge.

The bridge has a namespace of its own, so that neither the machine's interfaces nor its firewall
have a part in it, and all interfaces go when the namespaces go.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.network.rates import queue
from benchmarks.network.tools import NetworkError, output, path_of

INTERFACE = "eth0"  # of every host
MOUNTED = Path("/run/netns")  # where `ip` keeps namespaces
FILES = Path("/etc/netns")  # of a namespace, which its processes see in /etc
_SWITCH = "switch"
_BRIDGE = "bridge"
_SECONDS = 5  # for processes to end


def make(network: str, hosts: Sequence[str]) -> None:
    """Make the namespaces of a network, joined by unshaped links."""
    switch = namespace(network, _SWITCH)
    output("ip", "netns", "add", switch)
    output("ip", "-n", switch, "link", "add", _BRIDGE, "type", "bridge")
    output("ip", "-n", switch, "link", "set", _BRIDGE, "up")
    for number, host in enumerate(hosts, start=1):
        name = namespace(network, host)
        _write_files(name, number, hosts)
        output("ip", "netns", "add", name)
        ends = ["link", "add", INTERFACE, "type", "veth", "peer", "name", host, "netns", switch]
        output("ip", "-n", name, *ends)
        output("ip", "-n", name, "address", "add", f"{_address(number)}/24", "dev", INTERFACE)
        output("ip", "-n", name, "link", "set", "lo", "up")
        output("ip", "-n", name, "link", "set", INTERFACE, "up")
        output("ip", "-n", switch, "link", "set", host, "master", _BRIDGE, "up")


def shape(network: str, host: str, rate: str) -> None:
    """Give a host's link a rate, in both directions: only what leaves an interface is shaped."""
    for end, interface in ((host, INTERFACE), (_SWITCH, host)):
        where = ["-n", namespace(network, end), "qdisc", "replace", "dev", interface, "root"]
        output("tc", *where, *queue(rate))


def bytes_sent(network: str, host: str) -> int:
    """What a host's interface has sent since it was made."""
    name = namespace(network, host)
    (link,) = json.loads(output("ip", "-n", name, "-j", "-s", "link", "show", "dev", INTERFACE))
    count: int = link["stats64"]["tx"]["bytes"]
    return count


def inside(network: str, host: str, command: Sequence[str]) -> list[str]:
    """The command that runs ``command`` on a host."""
    return [path_of("ip"), "netns", "exec", namespace(network, host), *command]


def remove(name: str) -> None:
    """Remove a namespace with its processes, interfaces and files, or what there is of them."""
    with contextlib.suppress(NetworkError):
        _end_processes(name)
    with contextlib.suppress(NetworkError):
        output("ip", "netns", "delete", name)
    shutil.rmtree(FILES / name, ignore_errors=True)


def namespace(network: str, host: str) -> str:
    """The name of a host's namespace."""
    return f"{network}-{host}"


def _address(number: int) -> str:
    return f"10.0.0.{number}"


def _write_files(name: str, number: int, hosts: Sequence[str]) -> None:
    """What the processes of a host see in /etc instead of the machine's own files."""
    lines = ["127.0.0.1 localhost"]
    lines += [f"{_address(other)} {host}" for other, host in enumerate(hosts, start=1)]
    lines.append(f"{_address(number)} {socket.gethostname()}")  # Horovod looks up its own name
    folder = FILES / name
    folder.mkdir(parents=True)
    (folder / "hosts").write_text("\n".join([*lines, ""]))
    shadow = folder / "shadow"
    shadow.touch(mode=0o600)
    # Some systems lock root's account, and sshd then refuses a key too: this one is not locked.
    shadow.write_text("root:*:1::::::\n")


def _end_processes(name: str) -> None:
    """End all that runs in a namespace: kindly at first, for the sake of Python's semaphores."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _SECONDS
        while found := output("ip", "netns", "pids", name).split():
            if time.monotonic() > deadline:
                break
            for process in map(int, found):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)
            time.sleep(0.05)
