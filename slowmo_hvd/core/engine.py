"""The order of a sync, written once for every framework: count, average, outer step, record.

Without an overlap, training stands still during an average (`slowmo_hvd.core.average`), which
leaves the parameters where the next window begins. With an overlap, the average is launched when a
window ends, runs in its own thread, and lands some steps later. The local steps taken since then
are kept.

A failure between the first and the last bucket leaves one part of the model old and the other new.
The engine then refuses to go on until the model is mended by loading a state. A restore in elastic
training and a broadcast of the optimizer's state also load one.
"""

import contextlib
import dataclasses
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, cast

from slowmo_hvd.core.average import Average, NoCrossing
from slowmo_hvd.core.buckets import Bucket, total_bytes
from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.drift import DriftWatch
from slowmo_hvd.core.elastic_job import refuse_in_reset
from slowmo_hvd.core.flight import Flight, Flights
from slowmo_hvd.core.header import Header
from slowmo_hvd.core.living import register, wait_at_exit
from slowmo_hvd.core.ports import Counters, Crossing, Inner, Overlapping, Slow
from slowmo_hvd.core.records import SyncRecord, SyncStats
from slowmo_hvd.core.roll_call import RollCall, exclusion, is_sound, powerless
from slowmo_hvd.core.schedule import MeanLearningRate, Schedule, Sync, in_flight
from slowmo_hvd.core.transport import Transport
from slowmo_hvd.core.warn import warn
from slowmo_hvd.core.windows import Settings, settings_of


class Engine:
    """Counts local steps, and synchronises when the schedule says so.

    Its decisions depend only on what is equal on every rank: the counters, the configuration, and
    the header, which is a sum over the ranks.

    Attributes:
        config: τ, α, β and the other settings.
        transport: how to send, and to whom.
        schedule: the counters.
        counters: where the counters are kept, if not in the engine.
        rates: γ so far of each parameter group, for each fragment.
        samples: n of each fragment's window so far, on this worker; 0 if nothing is counted.
        stats: totals over the syncs so far.
        hooks: called with the record of each sync, under any key.
        name: the name of its collectives, which nothing else uses, once the ranks have agreed.
        named_by: the owner of that name, kept until what is under way is over too.
        slow: what is synchronised, once the ranks have agreed.
        inner: what else is synchronised.
    """

    def __init__(
        self,
        config: SlowMoConfig,
        transport: Transport,
        inner: Inner,
        groups: int,
    ) -> None:
        """Begin before the first step.

        Args:
            config: the user's settings.
            transport: the adapter's transport.
            inner: the adapter's view of the inner optimizer.
            groups: the number of parameter groups.
        """
        self.config = config
        self.transport = transport
        self.inner = inner
        self.counters: Counters | None = None
        self._flights = Flights()
        self.begin_afresh(groups)
        self._begin_unshared()

    def begin_afresh(self, groups: int) -> None:
        """Go back to no step taken: u_0 = 0, and no anchor until the first step begins."""
        self._flights.give_up()
        self.schedule = Schedule(self.config)
        self.rates = [
            [MeanLearningRate() for _ in range(groups)] for _ in range(self.config.fragments)
        ]
        self.samples = [0] * self.config.fragments
        self.slow: Slow | None = None
        self._torn = ""

    def _begin_unshared(self) -> None:
        """Set what a copy does not take from its original."""
        self.name = ""
        self.named_by: Any = None
        self.stats = SyncStats()
        self.hooks: OrderedDict[int, Callable[[SyncRecord], None]] = OrderedDict()
        self._flights = Flights()
        self._warned = False
        self._drift = DriftWatch()
        self._told_at: float | None = None
        register(self)

    def __getstate__(self) -> dict[str, Any]:
        """For deepcopy and pickle."""
        self.settle()
        unshared = ("name", "named_by", "stats", "hooks", "_flights")
        return {k: v for k, v in self.__dict__.items() if k not in unshared}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_unshared()

    # ---- whether it can go on ------------------------------------------------------------

    def check(self) -> None:
        """Raise RuntimeError if no step may begin, before any work is wasted."""
        refuse_in_reset()
        self._check_whole()
        self.transport.critical.check(self)

    def settle(self) -> None:
        """Wait until nothing is on the wire, so that the state is that of a step. Land nothing.

        This is not a collective: the other ranks have also launched what is under way, or will do
        so.

        Raises:
            RuntimeError: one part of the model is old and the other new.
            Exception: the error of an average that has not landed yet.
        """
        self.wait()
        self._check_whole()
        averages = self._flights.results()
        if averages:  # for what is saved; nothing depends on it before it lands
            self.count_from_there()
            for average in averages:
                self._take_gammas(average)
            self._counted()

    def _check_whole(self) -> None:
        if self._torn and self._flights:
            torn_by, self._flights = self._flights, Flights()
            torn_by.results()  # the first time, raise what tore it
        self.transport.critical.check_whole(self)
        if self._torn:
            raise RuntimeError(self._torn)

    def mend(self) -> None:
        """Note that the model is whole again: all of it has been loaded, restored or broadcast."""
        self._flights.give_up()
        self._torn = ""

    @property
    def under_way(self) -> bool:
        """Whether an average has been launched in this process and has not landed."""
        return bool(self._flights)

    def wait(self) -> None:
        """Wait until nothing is on the wire, and ignore errors."""
        self._flights.wait()

    @contextlib.contextmanager
    def all_or_torn(self, where: str, changed: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Use around code that changes the model bit by bit. If it fails, the model must be mended.

        Args:
            where: what the code does, for messages.
            changed: tells whether anything has changed already.
        """
        try:
            yield
        except BaseException:
            if changed():
                self._torn = (
                    f"{where} failed when a part of the model had been synchronised: load a "
                    "checkpoint, or restore the last commit of elastic training, on every rank"
                )
            raise

    @contextlib.contextmanager
    def together(
        self,
        where: str,
        doing: str = "",
        *,
        unnamed: bool = False,
        warn_after: float | None = None,
        size: int = 0,
    ) -> Iterator[None]:
        """Use around collectives during which training stands still, and the use of their sums.

        Args:
            where: "the first step", for messages.
            doing: "in the first step", for messages; give it if it is not "in " and ``where``.
            unnamed: as in `CriticalSections.entered`.
            warn_after: as in `StallWatch.begin`.
            size: as in `StallWatch.begin`.
        """
        self.wait()  # these would share wires and names with what is under way
        with (
            self.transport.critical.entered(self, where, unnamed=unnamed),
            self.transport.stall_watch.waiting(
                self, doing or f"in {where}", warn_after=warn_after, size=size
            ),
        ):
            yield

    # ---- steps and syncs -----------------------------------------------------------------

    def count(self, rates: Iterable[Any]) -> bool:
        """Count one attempted step, taken at these learning rates; return whether to call `act`."""
        rates = list(rates)
        for means in self.rates:
            for mean, rate in zip(means, rates, strict=True):
                mean.add(rate)
        return self.schedule.tick() is not None

    def contribute(self, samples: int) -> None:
        """Count samples of the next step, if the counters are kept here."""
        self.samples = [counted + samples for counted in self.samples]

    def act(self) -> None:
        """Land, launch and synchronise what is due by the counters. A collective.

        Raises:
            RuntimeError: the ranks are in different syncs, or in parts of different ones.
            FloatingPointError: weights are not finite, as in `call_roll`. Either error is the same
                on every rank, and nothing has changed.
        """
        self.count_from_there()
        due = self.schedule.due()
        self._land(due.landing)
        if due.kind is Sync.WINDOW and self.config.overlap_steps:
            for fragment in due.ending:
                self._launch(fragment)
        elif due.ending:
            self._sync(due.kind, due.ending)

    @property
    def parted(self) -> bool:
        """Whether workers may differ or averages are to land, so that `flush` does something.

        This depends on counters, which are equal on every rank.
        """
        self.count_from_there()
        return any(self.schedule.landings) or bool(self._open())

    def _open(self) -> list[int]:
        """The fragments in whose windows steps have been taken."""
        if self.schedule.is_warmup(self.schedule.step):
            return []
        return [
            fragment
            for fragment, means in enumerate(self.rates)
            if any(mean.steps for mean in means)
        ]

    def flush(self) -> None:
        """Land what is under way, and end the windows in which steps have been taken.

        A collective. It raises the same errors as `act`.
        """
        self.land()
        fragments = self._open()
        if fragments:
            self._sync(Sync.FLUSH, fragments)

    def land(self) -> None:
        """Land what is under way, early. Like `settle`, this is not a collective."""
        self.count_from_there()
        self._land(in_flight(self.schedule.landings))

    def meet(self) -> None:
        """Check that all ranks are about to change the parameters that they train. A collective.

        It exchanges the header of a sync. So a rank that calls this alone meets the others in their
        next sync, and all ranks get the same error. Nothing is averaged.

        Raises:
            RuntimeError: some ranks are not about to change their parameters.
        """
        figures = [0.0] * (1 + len(self.rates) * len(self.rates[0]))
        header = Header(self.config, self.schedule.step, changing=True)
        header.send(self.transport, figures, self.name)

    def take_mean(self, slow: Slow, name: str) -> RollCall:
        """Set some parameters to their plain mean over the workers. A collective.

        Args:
            slow: holds them and their anchors, in one fragment.
            name: the name of the collectives, which nothing else uses.

        Raises:
            FloatingPointError: as in a sync, the same on every rank; nothing has changed.
        """
        where = f"the mean of what was frozen after step {self.schedule.step}"
        gammas = {0: [0.0] * len(self.rates[0])}
        header = Header(self.config, self.schedule.step, self._squares(slow, gammas) is not None)

        def cross(sound: bool) -> Crossing:
            return self.inner.stop(slow, sound=sound)

        average = self._average(slow, cross, gammas, name, header)
        self._carry_out(average, where)
        return average.roll

    # ---- one sync ------------------------------------------------------------------------

    def _sync(self, kind: Sync, fragments: Sequence[int]) -> None:
        """Synchronise now, while training stands still."""
        begin, where, slow = time.perf_counter(), self._where(), self._slow
        with (
            self.transport.range("slowmo.sync"),
            self.together(where, size=total_bytes(_buckets(slow, fragments))),
        ):
            gammas = {f: [rate.mean for rate in self.rates[f]] for f in fragments}
            opens_window = not self.schedule.warming_up
            settings = self._settings(fragments, kind)

            def cross(sound: bool) -> Crossing:
                return self.inner.cross(slow, fragments, sound=sound, opens_window=opens_window)

            header = self._header(slow, gammas, settings)
            average = self._average(slow, cross, gammas, self.name, header)
            self._carry_out(average, where)
            window, period = (
                c[fragments[0]] for c in (self.schedule.windows, self.schedule.periods)
            )
            self._take_gammas(average)
            periods = settings.periods
            if self.config.by_learning_rate and opens_window:  # which is agreed only from here on
                periods = {fragment: self.schedule.next_period(fragment) for fragment in fragments}
            self.schedule.end(kind, fragments, periods)
            self._begin_windows(fragments)
            self._counted()
        seconds = time.perf_counter() - begin
        self._tell(average.record(kind, window, period, seconds=seconds, waiting=average.waited))

    def _launch(self, fragment: int) -> None:
        """Start the average of a fragment whose window has ended. Training goes on."""
        begin, slow = time.perf_counter(), cast(Overlapping, self._slow)
        where, annotation = self._where(), self.transport.range(f"slowmo.launch.fragment{fragment}")
        with annotation, self.transport.critical.entered(self, where):
            gammas = {fragment: [rate.mean for rate in self.rates[fragment]]}
            launched = slow.launch(fragment)
            settings = self._settings([fragment], Sync.WINDOW)
            header = self._header(launched, gammas, settings)
            if not header.sound:
                slow.return_to_anchor(fragment)
            self.inner.cross(slow, [fragment], sound=header.sound, opens_window=True).end()
            average = self._average(launched, NoCrossing, gammas, self.name, header)
            window, period = self.schedule.windows[fragment], self.schedule.periods[fragment]
            rates, samples = self.rates[fragment], self.samples[fragment]
            flight = Flight(average, window, period, rates, samples)
            self.schedule.launch(fragment, settings.periods)
            self._begin_windows([fragment])
            self._counted()
            size = total_bytes(slow.buckets_of(fragment))

            def carry_out() -> None:
                watch = self.transport.stall_watch
                with (
                    self.transport.critical.watched(self, where),
                    watch.waiting(flight, f"in {where}", size=size),
                ):
                    self._carry_out(average, where)

            wait_at_exit()
            self._flights.launch(fragment, flight, self.transport.in_background(carry_out))
            flight.seconds = time.perf_counter() - begin

    def _land(self, fragments: Iterable[int]) -> None:
        for fragment in fragments:
            begin = time.perf_counter()
            with self.transport.range(f"slowmo.wait.fragment{fragment}"):
                flight = self._flights.landing(fragment)
            if flight is not None:
                self._check_launch(fragment, flight)
            waited = time.perf_counter() - begin
            annotation = self.transport.range(f"slowmo.landing.fragment{fragment}")
            where = f"the landing after step {self.schedule.step}"
            with annotation, self.transport.critical.entered(self, where):
                cast(Overlapping, self._slow).land(fragment)
                if flight is not None:
                    self._take_gammas(flight.average)
                self.schedule.land(fragment)
                self._counted()
            if flight is not None:  # not one that was loaded
                self._tell(flight.record(begin, waited))

    def _check_launch(self, fragment: int, flight: Flight) -> None:
        """Raise the error of a launched average. If nothing has changed, it is due again."""
        try:
            flight.result()
        except Exception:
            if not flight.average.changed:
                cast(Overlapping, self._slow).drop(fragment)
                self.schedule.reopen(fragment, flight.period)
                for mean, earlier in zip(self.rates[fragment], flight.rates, strict=True):
                    mean.add(earlier.total, earlier.steps)
                self.samples[fragment] += flight.samples
                self._counted()
            raise

    def _average(
        self,
        slow: Slow,
        cross: Callable[[bool], Crossing],
        gammas: dict[int, list[float]],
        name: str,
        header: Header,
    ) -> Average:
        news = header.sound and self.inner.has_news()
        fragments = self.config.fragments
        return Average(
            self.transport, name, slow, cross, gammas, header, fragments=fragments, news=news
        )

    def _settings(self, fragments: Sequence[int], kind: Sync) -> Settings:
        begins, outer = not self.schedule.warming_up, kind is not Sync.WARMUP
        return settings_of(self.config, self.schedule, fragments, outer=outer, begins=begins)

    def _take_gammas(self, average: Average) -> None:
        """Keep γ that the workers have agreed on, for what depends on it."""
        for fragment, gammas in average.gammas.items():
            self.schedule.gammas[fragment] = max(map(abs, gammas))

    def _carry_out(self, average: Average, where: str) -> None:
        with self.all_or_torn(where, lambda: average.changed):
            average.carry_out()

    def _header(self, slow: Slow, gammas: dict[int, list[float]], settings: Settings) -> Header:
        factor = self.config.outlier_factor
        if factor is not None and factor >= 2 and self.transport.workers == 2 and not self._warned:
            self._warned = True
            warn([powerless(factor)])
        squares = self._squares(slow, gammas)
        return Header(
            self.config,
            self.schedule.step,
            squares is not None,
            settings,
            norm=0.0 if squares is None else math.sqrt(squares),
            samples=[n if f in gammas else 0 for f, n in enumerate(self.samples)],
        )

    def _squares(self, slow: Slow, gammas: dict[int, list[float]]) -> float | None:
        """‖x^i‖², or ‖d^i‖² if outliers are excluded; None if this worker may not contribute."""

        def memory(bucket: Bucket) -> Any:
            return self.transport.memory(bucket.room, bucket.size, 0)

        buckets = _buckets(slow, gammas)
        rates = [gamma for of_fragment in gammas.values() for gamma in of_fragment]
        with self.transport.critical.alike():  # such as errors in an optimizer's own second_copies
            if self.config.outlier_factor is None:
                squares = slow.squared_norm(buckets, memory)
            else:
                squares = float(sum(slow.displacement(b, memory(b)) for b in buckets))
            return squares if is_sound(squares, rates) and self.inner.finite() else None

    def _begin_windows(self, fragments: Collection[int]) -> None:
        for fragment in fragments:
            self.rates[fragment] = [MeanLearningRate() for _ in self.rates[fragment]]
            self.samples[fragment] = 0

    def _counted(self) -> None:
        if self.counters is not None:
            self.counters.give(self.schedule, self.rates, self.samples)

    def count_from_there(self) -> None:
        """Take the counters from where they are kept, if not here."""
        if self.counters is not None:
            self.rates, self.samples = self.counters.take(self.schedule)

    def _tell(self, record: SyncRecord) -> None:
        now = time.perf_counter()
        if self._told_at is not None:
            record = dataclasses.replace(record, since_last=now - self._told_at)
        self._told_at = now
        self.stats = self.stats.add(record)
        warn([*exclusion(record.excluded, record.outliers, record.step), *self._drift.see(record)])
        for hook in list(self.hooks.values()):  # a hook may remove itself
            hook(record)

    @property
    def _slow(self) -> Slow:
        assert self.slow is not None  # the ranks have agreed
        return self.slow

    def _where(self) -> str:
        return f"the sync after step {self.schedule.step}"


def _buckets(slow: Slow, fragments: Iterable[int]) -> list[Bucket]:
    return [bucket for fragment in fragments for bucket in slow.buckets_of(fragment)]
