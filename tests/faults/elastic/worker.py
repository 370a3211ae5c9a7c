"""The worker's side of an elastic run with faults: it reports what it does, and dies as planned."""

import functools
import hashlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from faults.elastic.plan import Kill, Plan

from slowmo_hvd.core import average


class Worker:
    """Reports to the cluster through a pipe, waits for the planned sizes, and dies as planned.

    Args:
        hvd: the adapter.
        state: the elastic state, with an attribute ``step``.
        contents: all arrays that must survive: the model's and the optimizer's, slow state and all.
    """

    def __init__(self, hvd: Any, state: Any, contents: Callable[[], Iterable[Any]]) -> None:
        self._folder = _folder()
        self.plan = self.plan_of_run()
        self._hvd, self._state, self._contents = hvd, state, contents
        self._pipe = os.open(self._folder / "events", os.O_WRONLY)
        self._hosts_changed = threading.Event()
        self._patch(state, "on_hosts_updated", before=self._hosts_changed.set)
        self._patch(state, "check_host_updates", before=self._saved)
        # A commit that has returned to any worker is not lost any more.
        self._patch(state, "commit", after=lambda: self.tell("committed"))
        self._patch(state, "on_reset", after=self._hosts_changed.clear)
        self.tell("started")

    @staticmethod
    def plan_of_run() -> Plan:
        return Plan.load(_folder() / "plan.json")

    def _patch(
        self,
        owner: Any,
        name: str,
        *,
        before: Callable[[], Any] = lambda: None,
        after: Callable[[], Any] = lambda: None,
    ) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def patched(*args: Any, **kwargs: Any) -> Any:
            before()
            result = original(*args, **kwargs)
            after()
            return result

        object.__setattr__(owner, name, patched)

    def _at(self, moment: str) -> Callable[[], None]:
        return lambda: self.die_if_planned(moment)

    def watch_copy(self, owner: Any, name: str) -> None:
        """``owner.name()`` makes the first part of a commit's copy."""
        self._patch(owner, name, after=self._at("inside a commit's copy"))

    def watch_elastic_sync(self, owner: Any, name: str) -> None:
        """``owner.name()`` makes the first part of an elastic sync."""
        self._patch(owner, name, after=self._at("inside an elastic sync"))

    def tell(self, event: str, **values: Any) -> None:
        """One line to the cluster; lines this short never mix in a pipe."""
        common = {
            "event": event,
            "pid": os.getpid(),
            "host": os.environ["HOROVOD_HOSTNAME"],
            "step": self._state.step,
            "time": round(time.monotonic(), 2),
        }
        os.write(self._pipe, (json.dumps(common | values) + "\n").encode())

    def digest(self) -> str:
        """Of all that must survive."""
        hashed = hashlib.sha256()
        for value in self._contents():
            hashed.update(np.ascontiguousarray(value).tobytes())
        return hashed.hexdigest()[:16]

    def begin(self) -> None:
        """Training begins, or begins again with other workers."""
        self.tell("begun", rank=self._hvd.rank(), size=self._hvd.size(), digest=self.digest())

    def _saved(self) -> None:
        """A commit has made its copy, and now asks whether hosts have changed."""
        self.tell("saved", rank=self._hvd.rank(), digest=self.digest())
        self.die_if_planned("after a commit's copy")

    def wait_for_size(self) -> None:
        """At a step of the plan with a size, commit until the workers are so many.

        Each commit asks rank 0 whether hosts have changed, and rank 0 waits until they have: so
        this ends by an exception of Horovod's, and training begins again at the same step.
        """
        wanted = self.plan.sizes.get(self._state.step, self._hvd.size())
        while self._hvd.size() != wanted:
            if self._hvd.rank() == 0:
                self.tell("waiting", size=self._hvd.size(), wanted=wanted)
                self._hosts_changed.wait()
                self._hosts_changed.clear()
            self._state.commit()

    def before_step(self) -> None:
        """The gradients of the next step are there."""
        if (self._state.step + 1) % self.plan.sync_period == 0:
            self.die_if_planned("before a sync's allreduce", 1)
            kill = self._planned("during a sync's allreduce", 1)
            if kill is not None:
                # A moment drawn from about the time that a sync takes.
                delay = random.Random(f"{kill} {self.plan.seed}").uniform(0, 4e-3)
                threading.Thread(target=lambda: (time.sleep(delay), self._die(kill))).start()
            kill = self._planned("between a sync's buckets", 1)
            if kill is not None:
                self._die_between_buckets(kill)

    def _die_between_buckets(self, kill: Kill) -> None:
        landed = []
        land = average._Displacement.land

        def land_or_die(load: Any, total: Any) -> None:
            if landed:
                self._die(kill)
            landed.append(load)
            land(load, total)

        average._Displacement.land = land_or_die

    def after_step(self) -> None:
        """A step is done and counted, and the sync after it."""
        self.tell("stepped", rank=self._hvd.rank())
        if self._state.step % self.plan.sync_period:
            self.die_if_planned("inside a window")

    def sync_hook(self, _: Any) -> None:
        self.die_if_planned("after a sync's allreduce", 1)

    def finish(self, loss: float) -> None:
        values = {"rank": self._hvd.rank(), "size": self._hvd.size(), "loss": loss}
        self.tell("finished", digest=self.digest(), **values)

    def die_if_planned(self, moment: str, steps_ahead: int = 0) -> None:
        kill = self._planned(moment, steps_ahead)
        if kill is not None:
            self._die(kill)

    def _planned(self, moment: str, steps_ahead: int) -> Kill | None:
        """This rank's kill here, which is then taken: nobody dies of it again."""
        step = self._state.step + steps_ahead
        for index, kill in enumerate(self.plan.kills):
            if (kill.moment, kill.step, kill.rank) != (moment, step, self._hvd.rank()):
                continue
            try:
                (self._folder / f"kill{index}").touch(exist_ok=False)
            except FileExistsError:
                continue
            return kill
        return None

    def _die(self, kill: Kill) -> None:
        self.tell("dying", moment=kill.moment, rank=kill.rank)
        os.kill(os.getpid(), signal.SIGKILL)


def _folder() -> Path:
    return Path(os.environ["FAULTS_FOLDER"])
