"""One average of the workers, from the header to the last bucket.

1. The header: a mark of each worker, as `slowmo_hvd.core.roll_call` has it, and γ of each group;
   where τ, α or β are functions, a mark of what they give. It travels by itself, exact whatever the
   compression. Until it has been read nothing has changed, and an error in it is the same on every
   rank.
2. The buckets: the workers' displacements are summed, and lead to the outer step, one by one. What
   follows them, such as averaged buffers, travels in the same pipeline.
3. Each worker's ‖d‖², which is known once all is packed, for the record.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from slowmo_hvd.core.outer import OuterStep
from slowmo_hvd.core.pipeline import Load, send
from slowmo_hvd.core.plan import Bucket
from slowmo_hvd.core.ports import Crossing, Slow
from slowmo_hvd.core.records import SyncRecord
from slowmo_hvd.core.roll_call import RollCall, call_roll, mark
from slowmo_hvd.core.schedule import Sync
from slowmo_hvd.core.transport import Transport
from slowmo_hvd.core.windows import PLAIN_SETTINGS, Settings, check_settings


class Average:
    """One average. It reads no counters, so it may be carried out while steps go on.

    Attributes:
        gammas: γ of each group, of each fragment that is averaged; once it is over, the mean over
            the workers.
        roll: who was in it, once it is over.
        changed: whether a part of the model or of the optimizer has changed.
    """

    roll: RollCall

    def __init__(
        self,
        transport: Transport,
        name: str,
        slow: Slow,
        cross: Callable[[], Crossing],
        gammas: dict[int, list[float]],
        *,
        fragments: int,
        step: int,
        sound: bool,
        news: bool,
        settings: Settings,
        compare: bool,
        on_nonfinite: str,
    ) -> None:
        """Prepare it; nothing is sent yet.

        Args:
            transport: how to send.
            name: the collectives' name, in use for nothing else meanwhile.
            slow: has the displacements, and takes the outer steps.
            cross: tells, once it is certain that there will be a sync, what else travels.
            gammas: this worker's.
            fragments: how many there are in all.
            step: local steps attempted so far.
            sound: whether this worker contributes.
            news: as `Inner.has_news`.
            settings: α and β; a fragment that has none takes the plain mean.
            compare: whether the ranks must tell each other theirs, since there are functions.
            on_nonfinite: as in `SlowMoConfig`.
        """
        self._transport = transport
        self._name = name
        self._slow = slow
        self._cross = cross
        self.gammas = gammas
        self._fragments = fragments
        self._zeros = [0.0] * len(next(iter(gammas.values())))
        self._step = step
        self._sound = sound
        self._news = news
        self._settings = settings
        self._compare = compare
        self._on_nonfinite = on_nonfinite
        self.changed = False
        self._squares = self._squares_of_sum = self._squares_of_all = 0.0
        self.bytes = 0  #: handed to allreduce
        self.waited = 0.0  #: seconds, for the wire and for slower workers

    def carry_out(self) -> None:
        """Do it. A collective.

        Raises:
            RuntimeError: the ranks are in different syncs.
            FloatingPointError: weights are not finite, as `call_roll` has it. Either is the same
                on every rank, and nothing has changed.
        """
        sent, waited = self._transport.sent, self._transport.waited
        self._header()
        crossing = self._cross()
        figures: list[Any] = []
        self.changed = crossing.changed

        def loads() -> Iterator[Load]:
            yield from self._displacements()
            # All are packed; the last ones are still to land.
            name = f"{self._name}.figures"
            figures.append(self._transport.start_numbers([float(self._squares)], name))
            yield from crossing.loads(self.roll, f"{self._name}.inner", news=self._news)

        send(loads(), self._transport, self._name)
        (self._squares_of_all,) = self._transport.finish_numbers(figures[0])
        crossing.end()
        self.bytes = self._transport.sent - sent
        self.waited = self._transport.waited - waited

    def _header(self) -> None:
        """Learn who is in it, γ of each group over the workers, and whether there is news.

        It is as long whatever is averaged: ranks that are in different syncs can read it.
        """
        gammas = [self.gammas.get(fragment, self._zeros) for fragment in range(self._fragments)]
        own = [float(self._news), *itertools.chain(*gammas)]
        roll, (news, *sums) = send_header(
            self._transport,
            mark(self._step, sound=self._sound),
            own if self._sound else [0.0] * len(own),
            self._name,
            self._on_nonfinite,
            self._settings if self._compare else None,
        )
        self.roll, self._news = roll, news > 0
        groups = len(self._zeros)
        for fragment in self.gammas:
            of_fragment = sums[fragment * groups : (fragment + 1) * groups]
            self.gammas[fragment] = [total / roll.contributors for total in of_fragment]

    def _displacements(self) -> Iterator[Load]:
        for fragment, gammas in self.gammas.items():
            steps = [self._settings.outer_step(fragment, gamma) for gamma in gammas]
            for index, bucket in enumerate(self._slow.buckets_of(fragment)):
                yield _Displacement(self, f"fragment{fragment}.bucket{index}", bucket, steps)

    def pack(self, bucket: Bucket, wire: Any) -> None:
        """Write this worker's displacement."""
        if self._sound:
            self._squares += self._slow.displacement(bucket, wire)
        else:
            self._slow.nothing(wire)

    def land(self, bucket: Bucket, total: Any, steps: Sequence[OuterStep]) -> None:
        """Take the outer step from the workers' sum."""
        self.changed = True
        self._squares_of_sum += self._slow.outer_step(bucket, total, self.roll.contributors, steps)

    def record(
        self,
        kind: Sync,
        window: int,
        period: int,
        *,
        seconds: float,
        waiting: float,
        hidden: float = 0.0,
    ) -> SyncRecord:
        """What happened, once it is over."""
        workers = self.roll.contributors
        norm = math.sqrt(float(self._squares_of_sum)) / workers
        outer = self._settings.outer.get(next(iter(self.gammas)), PLAIN_SETTINGS)
        return SyncRecord(
            kind=kind,
            step=self._step,
            window=window,
            workers=workers,
            learning_rates=tuple(gamma for gammas in self.gammas.values() for gamma in gammas),
            bytes=self.bytes,
            seconds=seconds,
            displacement_norm=norm,
            drift=math.sqrt(max(self._squares_of_all / workers - norm**2, 0.0)),
            excluded=self.roll.excluded,
            fragments=tuple(self.gammas),
            waiting=waiting,
            hidden=hidden,
            sync_period=period,
            slow_lr=outer.slow_lr,
            slow_momentum=outer.slow_momentum,
        )


class NoCrossing:
    """The inner optimizer's way where nothing of it travels, or changes."""

    changed = False

    def loads(self, roll: RollCall, name: str, *, news: bool) -> Iterator[Load]:
        """None."""
        return iter(())

    def end(self) -> None:
        """Nothing is left to do."""


class _Displacement:
    """A bucket of displacements."""

    exact = False

    def __init__(
        self, average: Average, name: str, bucket: Bucket, steps: Sequence[OuterStep]
    ) -> None:
        self.name, self.room, self.size = name, bucket.room, bucket.size
        self._average, self._bucket, self._steps = average, bucket, steps

    def pack(self, wire: Any) -> None:
        self._average.pack(self._bucket, wire)

    def land(self, total: Any) -> None:
        self._average.land(self._bucket, total, self._steps)


def send_header(
    transport: Transport,
    own: float,
    figures: Sequence[float],
    name: str,
    on_nonfinite: str,
    settings: Settings | None,
) -> tuple[RollCall, list[float]]:
    """Who is here, and the sums of these figures: a header. A collective.

    Args:
        transport: how to send.
        own: this worker's mark.
        figures: what is summed beside the marks.
        name: as an `Average` has it.
        on_nonfinite: as in `SlowMoConfig`.
        settings: as an `Average` has them.

    Raises:
        RuntimeError: as `call_roll` and `check_settings`.
        FloatingPointError: as `call_roll`.
    """
    workers, place = transport.workers, transport.place
    marks = [0.0] * (workers if settings is None else 2 * workers)
    marks[place] = own
    if settings is not None:
        marks[workers + place] = settings.mark
    sums = transport.sum_numbers([*marks, *figures], f"{name}.header")
    of_workers, of_settings = sums[:workers], sums[workers : len(marks)]
    with transport.critical.alike():
        roll = call_roll(of_workers, transport.ranks, on_nonfinite)
        if settings is not None:
            gather = partial(transport.gather, name=f"{name}.settings")
            check_settings(settings, of_settings, transport.ranks, round(abs(own)), gather)
    return roll, sums[len(marks) :]
