"""A cluster on this machine for elastic training: hosts come, go and die as a plan says.

Each worker is a host of its own, since Horovod ends all workers of a host that lost one. The hosts'
names are spellings of one address, which Horovod takes for different machines.
"""

import itertools
import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.elastic.plan import Plan
from launch import HOROVODRUN, ROOT, background
from progress import FAR, Watch

SCRIPTS = {name: f"tests/faults/elastic/train_{name}.py" for name in ("torch", "tensorflow")}
GLOO_TIMEOUT = 30
IDLE = 3 * GLOO_TIMEOUT  # seconds; survivors wait for Gloo, and may do so again
# 127.0.0.1 as inet_aton reads it: hexadecimal, octal, decimal and shortened.
_NAMES = [
    ".".join((*head, *middle, tail))
    for head in (("127",), ("0x7f",), ("0177",), ("0x7F",))
    for middle in (("0", "0"), ("0",), (), ("0x0",), ("00",))
    for tail in ("1", "0x1", "01")
]


@dataclass
class Report:
    """What the workers of a run told, in the order in which it arrived."""

    plan: Plan
    returncode: int
    output: str
    seconds: float
    events: list[dict[str, Any]] = field(repr=False)

    def of(self, event: str) -> list[dict[str, Any]]:
        return [told for told in self.events if told["event"] == event]

    @property
    def finished(self) -> list[dict[str, Any]]:
        return self.of("finished")

    @property
    def killed(self) -> list[str]:
        """The moments at which workers died."""
        return [told["moment"] for told in self.of("dying")]

    def begun(self, step: int) -> list[dict[str, Any]]:
        """Of each worker that began, or began again, after this many steps."""
        return [told for told in self.of("begun") if told["step"] == step]

    def sizes(self) -> list[int]:
        """The numbers of workers, one after the other."""
        return [size for size, _ in itertools.groupby(told["size"] for told in self.of("begun"))]

    @property
    def loss(self) -> float:
        """At the end; not a number if no worker got there."""
        return float(self.finished[0]["loss"]) if self.finished else math.nan

    def lost_steps(self) -> int:
        """How many committed steps were missing where training began again, in total."""
        committed, lost = 0, 0
        for told in self.events:
            if told["event"] == "committed":
                committed = max(committed, told["step"])
            if told["event"] == "begun":
                lost += max(committed - told["step"], 0)
                committed = min(committed, told["step"])
        return lost

    def strange_beginnings(self) -> list[dict[str, Any]]:
        """Where training began again with a state that nobody had committed."""
        known: set[tuple[int, str]] = set()
        strange = []
        for told in self.events:
            if told["event"] == "saved":
                known.add((told["step"], told["digest"]))
            begun = told["event"] == "begun" and told["step"] > 0
            if begun and (told["step"], told["digest"]) not in known:
                strange.append(told)
        return strange

    def problems(self) -> list[str]:
        """All that is not as promised; nothing, for a run that survived."""
        plan, found = self.plan, []
        if self.returncode != 0:
            found.append(f"horovodrun ended with code {self.returncode}")
        sizes = {told["size"] for told in self.finished}
        if sizes != {len(self.finished)}:
            found.append(f"{len(self.finished)} workers finished, of sizes {sizes}")
        if {told["step"] for told in self.finished} != {plan.steps}:
            found.append("not all steps were done")
        if len({told["digest"] for told in self.finished}) != 1:
            found.append("the ranks end with different models or slow states")
        if self.lost_steps():
            found.append(f"{self.lost_steps()} committed steps lost")
        if self.strange_beginnings():
            found.append(f"began with what nobody committed: {self.strange_beginnings()}")
        if len(self.killed) != len(plan.kills):
            found.append(f"{len(self.killed)} kills of {len(plan.kills)}")
        return found


class Cluster:
    """Hosts of one worker each, in the file that Horovod's host discovery reads."""

    def __init__(self, framework: str, plan: Plan, folder: Path) -> None:
        self._framework, self._plan, self._folder = framework, plan, folder
        self._names = iter(_NAMES)
        self._dead: set[str] = set()
        self._pids: set[int] = set()
        self._ranks: dict[str, int] = {}
        self._to_kill = [kill for kill in plan.kills if kill.moment == "outside"]
        self._hosts = [next(self._names) for _ in range(plan.workers)]
        self._write_hosts()
        plan.save(folder / "plan.json")
        script = folder / "discover.sh"
        script.write_text(f"#!/bin/sh\ncat {folder}/hosts\n")
        script.chmod(0o755)
        os.mkfifo(folder / "events")

    def _write_hosts(self) -> None:
        fresh = self._folder / "hosts.new"
        fresh.write_text("".join(f"{host}:1\n" for host in self._hosts))
        fresh.replace(self._folder / "hosts")  # the script never reads half a file

    def run(self, timeout: float) -> Report:
        """Train; after ``timeout`` seconds, once all hang or with an error here, end everything."""
        begun = time.monotonic()
        events: list[dict[str, Any]] = []
        # Open for writing too, so that the pipe does not end while no worker has it open.
        pipe = os.open(self._folder / "events", os.O_RDWR)
        log = self._folder / "output"
        environment = {
            "FAULTS_FOLDER": str(self._folder),
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
            "CUDA_VISIBLE_DEVICES": "",
            "KERAS_BACKEND": "tensorflow",
        }
        try:
            with background(self._command(), log=log, env=environment) as process:
                for told in self._events(pipe, process, timeout):
                    events.append(told)
                    self._react(told, events)
                code = process.returncode
        finally:
            os.close(pipe)
            for pid in self._pids:  # Horovod's workers are in sessions of their own
                _kill(pid)
        return Report(self._plan, code, log.read_text(), time.monotonic() - begun, events)

    def _command(self) -> list[str]:
        options = {
            "-np": self._plan.workers,
            "--min-np": 2,
            "--max-np": 4,
            "--host-discovery-script": self._folder / "discover.sh",
            "--network-interface": "lo",
            "--elastic-timeout": 60,
            # A survivor may learn of a loss by this alone, and a new worker has as long to start.
            "--gloo-timeout-seconds": GLOO_TIMEOUT,
        }
        words = [str(word) for option in options.items() for word in option]
        launcher = [*HOROVODRUN, "--gloo", "--disable-cache"]
        return [*launcher, *words, sys.executable, SCRIPTS[self._framework]]

    def _events(
        self, pipe: int, process: subprocess.Popen[bytes], timeout: float
    ) -> Iterator[dict[str, Any]]:
        """What workers tell, until horovodrun has ended and all is read."""
        rest = b""
        ended = os.pidfd_open(process.pid)
        self._pids.add(process.pid)
        watch = Watch(self._pids, idle=IDLE, far=timeout)
        next_look = time.monotonic() + watch.pause
        try:
            while True:
                ready, _, _ = select.select([pipe, ended], [], [], watch.pause)
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + watch.pause
                    if verdict := watch.verdict():
                        output = (self._folder / "output").read_text()
                        raise AssertionError(f"horovodrun {verdict}:\n{output}")
                if pipe in ready:
                    *lines, rest = (rest + os.read(pipe, 65536)).split(b"\n")
                    yield from map(json.loads, lines)
                elif ended in ready:
                    process.wait()
                    return
        finally:
            self._pids.discard(process.pid)
            os.close(ended)

    def _react(self, told: dict[str, Any], events: list[dict[str, Any]]) -> None:
        host = told["host"]
        if told["event"] == "started":
            self._pids.add(told["pid"])
        elif told["event"] == "dying":
            self._dead.add(host)
        elif told["event"] == "waiting":
            self._resize(told["wanted"])
        elif told["event"] == "stepped":
            for kill in self._to_kill:
                if (kill.step, kill.rank) == (told["step"], told["rank"]):
                    self._to_kill.remove(kill)
                    _kill(told["pid"])
                    self._dead.add(host)
                    events.append({**told, "event": "dying", "moment": "outside"})
                    break

    def _resize(self, wanted: int) -> None:
        """Take dead hosts off the list, and put fresh ones on it or take the last ones off."""
        self._hosts = [host for host in self._hosts if host not in self._dead]
        del self._hosts[wanted:]
        while len(self._hosts) < wanted:
            self._hosts.append(next(self._names))
        self._write_hosts()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def run(framework: str, plan: Plan, timeout: float = FAR - 30) -> Report:
    """Train under ``horovodrun`` with the plan's faults."""
    with tempfile.TemporaryDirectory() as folder:
        return Cluster(framework, plan, Path(folder)).run(timeout)
