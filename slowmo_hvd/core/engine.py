"""The order of a sync, once for every framework.

1. The header: a mark of each worker, as `slowmo_hvd.core.roll_call` has it, and γ of each group.
   It travels by itself, exact whatever the compression. Until it has been read nothing has changed,
   and an error in it is the same on every rank.
2. The buckets: the workers' displacements are summed, and lead to the outer step, one by one. What
   follows them, such as averaged buffers, travels in the same pipeline.
3. The record, with each worker's ‖d‖², which is known once all is packed.

A failure between the first bucket and the last leaves the model in part old and in part new. The
engine then refuses to go on until it is mended: by a load, which a restore of elastic training and
a broadcast of the optimizer's state are too.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.outer import PLAIN_AVERAGE, OuterStep, outer_step
from slowmo_hvd.core.pipeline import Load, send
from slowmo_hvd.core.plan import Bucket
from slowmo_hvd.core.ports import Inner, Slow
from slowmo_hvd.core.records import SyncRecord, SyncStats
from slowmo_hvd.core.roll_call import RollCall, call_roll, exclusion, is_sound, mark, mark_of_change
from slowmo_hvd.core.schedule import MeanLearningRate, Schedule, Sync
from slowmo_hvd.core.transport import Transport
from slowmo_hvd.core.warn import warn


class Engine:
    """Counts local steps, and synchronises when the schedule says so.

    All that it decides by is equal on every rank: counters, the configuration, and what the header
    brought, which is a sum.

    Attributes:
        config: τ, α, β and the rest.
        transport: how to send, and to whom.
        schedule: the counters.
        rates: γ so far of each parameter group.
        stats: of the syncs so far.
        hooks: called with the record of each sync, by any key.
        name: of its collectives, in use for nothing else, once the ranks have agreed.
        slow: what is synchronised, once the ranks have agreed.
        inner: what else is.
    """

    def __init__(
        self, config: SlowMoConfig, transport: Transport, inner: Inner, groups: int
    ) -> None:
        """Begin before the first step.

        Args:
            config: all that the user has set.
            transport: the adapter's.
            inner: likewise.
            groups: the number of parameter groups.
        """
        self.config = config
        self.transport = transport
        self.inner = inner
        self.begin_afresh(groups)
        self._begin_unshared()

    def begin_afresh(self, groups: int) -> None:
        """No step taken: u_0 = 0, and no anchor until the first step begins."""
        self.schedule = Schedule(self.config.sync_period, self.config.warmup_steps)
        self.rates = [MeanLearningRate() for _ in range(groups)]
        self.slow: Slow | None = None
        self._torn = ""

    def _begin_unshared(self) -> None:
        """What a copy does not take from its original."""
        self.name = ""
        self.stats = SyncStats()
        self.hooks: OrderedDict[int, Callable[[SyncRecord], None]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """For deepcopy and pickle."""
        self.check_whole()
        return {k: v for k, v in self.__dict__.items() if k not in ("name", "stats", "hooks")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_unshared()

    def check(self) -> None:
        """Raise RuntimeError where no step may begin, before anything is done in vain."""
        self.transport.critical.check(self)
        self.check_whole()

    def check_whole(self) -> None:
        """Raise RuntimeError if the model is in part old and in part new."""
        self.transport.critical.check_whole(self)
        if self._torn:
            raise RuntimeError(self._torn)

    def mend(self) -> None:
        """The model is whole again: all of it has been loaded, restored or broadcast."""
        self._torn = ""

    def count(self, rates: Iterable[Any]) -> Sync | None:
        """Count one attempted step, taken at these learning rates; return the sync now due."""
        for mean, rate in zip(self.rates, rates, strict=True):
            mean.add(rate)
        return self.schedule.tick()

    def sync(self, kind: Sync, then: Callable[[], None] = lambda: None) -> None:
        """Synchronise, and then call the hooks. A collective.

        Args:
            kind: why.
            then: called once the counters have moved on, before the hooks.

        Raises:
            RuntimeError: the ranks are in different syncs, or in parts of different ones.
            FloatingPointError: weights are not finite, as `call_roll` has it. Either is the same
                on every rank, and nothing has changed.
        """
        where = f"the sync after step {self.schedule.step}"
        with self.transport.critical.entered(self, where):
            record = self._sync(kind, where)
            then()
        if record.excluded:
            warn([exclusion(record.excluded, record.step)])
        for hook in list(self.hooks.values()):  # a hook may remove itself
            hook(record)

    def _sync(self, kind: Sync, where: str) -> SyncRecord:
        begin, sent = time.perf_counter(), self.transport.sent
        slow, inner, schedule = self.slow, self.inner, self.schedule
        assert slow is not None  # the ranks have agreed
        with self.transport.stall_watch.waiting(self, f"in {where}", size=slow.nbytes):
            gammas = [rate.mean for rate in self.rates]
            with self.transport.critical.alike():  # such as of an optimizer's own second_copies
                sound = self._sound(slow, gammas) and inner.finite()
                news = sound and inner.has_news()
            roll, gammas, news = self._header(self.name, sound=sound, gammas=gammas, news=news)
            steps = [
                PLAIN_AVERAGE if kind is Sync.WARMUP else outer_step(self.config, gamma)
                for gamma in gammas
            ]
            crossing = inner.cross(slow, sound=sound, opens_window=not schedule.warming_up)
            if crossing.changed:
                self._torn = _torn(where)
            squares, figures = _Squares(), []

            def loads() -> Iterator[Load]:
                yield from self._displacements(slow, roll, steps, squares, where, sound=sound)
                # All are packed; the last ones are still to land.
                name = f"{self.name}.figures"
                figures.append(self.transport.start_numbers([float(squares.own)], name))
                yield from crossing.loads(roll, f"{self.name}.inner", news=news)

            send(loads(), self.transport, self.name)
            (total,) = self.transport.finish_numbers(figures[0])
            crossing.end()
            self._torn = ""
        norm = float(squares.of_the_sum) ** 0.5 / roll.contributors
        record = SyncRecord(
            kind=kind,
            step=schedule.step,
            window=schedule.window,
            workers=roll.contributors,
            learning_rates=tuple(gammas),
            bytes=self.transport.sent - sent,
            seconds=time.perf_counter() - begin,
            displacement_norm=norm,
            drift=max(total / roll.contributors - norm**2, 0.0) ** 0.5,
            excluded=roll.excluded,
        )
        schedule.end(kind)
        for rate in self.rates:
            rate.clear()
        self.stats = self.stats.add(record)
        return record

    def take_mean(self, slow: Slow, name: str) -> RollCall:
        """Give some parameters their plain mean over the workers. A collective.

        Args:
            slow: has them and their anchors.
            name: the collectives' name, in use for nothing else.

        Raises:
            FloatingPointError: as in a sync, on every rank alike; nothing has changed.
        """
        with self.transport.critical.alike():
            sound = self._sound(slow, []) and self.inner.finite()
        roll, _, _ = self._header(name, sound=sound, gammas=[], news=False)
        where = f"the mean of what was frozen after step {self.schedule.step}"
        crossing = self.inner.stop(slow, sound=sound)
        if crossing.changed:
            self._torn = _torn(where)
        steps, squares = [PLAIN_AVERAGE] * len(self.rates), _Squares()

        def loads() -> Iterator[Load]:
            yield from self._displacements(slow, roll, steps, squares, where, sound=sound)
            yield from crossing.loads(roll, f"{name}.inner", news=False)

        send(loads(), self.transport, name)
        crossing.end()
        self._torn = ""
        return roll

    def _sound(self, slow: Slow, gammas: Sequence[float]) -> bool:
        def memory(bucket: Bucket) -> Any:
            return self.transport.memory(bucket.room, bucket.size, 0)

        return is_sound(slow.squared_norm(memory), gammas)

    def _displacements(
        self,
        slow: Slow,
        roll: RollCall,
        steps: Sequence[OuterStep],
        squares: "_Squares",
        where: str,
        *,
        sound: bool,
    ) -> Iterator[Load]:
        def tear() -> None:
            self._torn = _torn(where)

        for bucket in slow.buckets:
            yield _Displacement(
                slow, bucket, roll.contributors, steps, squares, sound=sound, tear=tear
            )

    def meet(self) -> None:
        """Learn whether all ranks are about to change what they train. A collective.

        It is the header of a sync. So a rank that is here alone meets the others in their next
        sync, and the same error comes on all of them. Nothing is averaged.

        Raises:
            RuntimeError: some ranks go on as before.
        """
        figures = [0.0] * (1 + len(self.rates))
        self._call_roll(mark_of_change(self.schedule.step), figures, self.name)

    def _header(
        self, name: str, *, sound: bool, gammas: Sequence[float], news: bool
    ) -> tuple[RollCall, list[float], bool]:
        """Who is in this sync, γ of each group over the workers, and whether there is news."""
        figures = [float(news), *gammas] if sound else [0.0] * (1 + len(gammas))
        roll, (some, *rates) = self._call_roll(mark(self.schedule.step, sound=sound), figures, name)
        return roll, [rate / roll.contributors for rate in rates], some > 0

    def _call_roll(
        self, own: float, figures: Sequence[float], name: str
    ) -> tuple[RollCall, list[float]]:
        """Who is here, and the sums of these figures. A collective."""
        transport, workers = self.transport, self.transport.workers
        marks = [0.0] * workers
        marks[transport.place] = own
        sums = transport.sum_numbers([*marks, *figures], f"{name}.header")
        with transport.critical.alike():
            roll = call_roll(sums[:workers], transport.ranks, self.config.on_nonfinite)
        return roll, sums[workers:]


class _Squares:
    """Squared norms so far: of this worker's displacement, and of the workers' sum."""

    own: Any = 0.0
    of_the_sum: Any = 0.0


class _Displacement:
    """A bucket of displacements."""

    exact = False

    def __init__(
        self,
        slow: Slow,
        bucket: Bucket,
        workers: int,
        steps: Sequence[OuterStep],
        squares: _Squares,
        *,
        sound: bool,
        tear: Callable[[], None],
    ) -> None:
        self.room = bucket.room
        self.size = bucket.size
        self._slow = slow
        self._bucket = bucket
        self._workers = workers
        self._steps = steps
        self._squares = squares
        self._sound = sound
        self._tear = tear

    def pack(self, wire: Any) -> None:
        if self._sound:
            self._squares.own += self._slow.displacement(self._bucket, wire)
        else:
            self._slow.nothing(wire)

    def land(self, total: Any) -> None:
        self._tear()
        self._squares.of_the_sum += self._slow.outer_step(
            self._bucket, total, self._workers, self._steps
        )


def _torn(where: str) -> str:
    return (
        f"{where} failed when a part of the model had been synchronised: load a checkpoint, or "
        "restore the last commit of elastic training, on every rank"
    )
