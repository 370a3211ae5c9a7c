"""One average of the workers, from the header to the last bucket.

1. The header: what each worker reports about itself (`slowmo_hvd.core.header`), and γ of each
   group. It is sent on its own, and is exact with any compression. Nothing has changed until it has
   been read, and an error in it is the same on every rank.
2. The buckets: the workers' displacements are summed, and the outer step is taken, bucket by
   bucket. Other tensors, such as averaged buffers, follow in the same pipeline. If the displacement
   is clipped, all sums are kept until the last one has arrived and their norm is known.
3. Each worker's ‖d‖², for the record. It is known once everything is packed.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from slowmo_hvd.core.buckets import Bucket
from slowmo_hvd.core.header import Header
from slowmo_hvd.core.outer import OuterStep, is_usable
from slowmo_hvd.core.pipeline import Load, send
from slowmo_hvd.core.ports import Crossing, Slow
from slowmo_hvd.core.records import SyncRecord
from slowmo_hvd.core.roll_call import RollCall
from slowmo_hvd.core.schedule import Sync
from slowmo_hvd.core.transport import Transport
from slowmo_hvd.core.windows import PLAIN_SETTINGS


class Average:
    """One average. It reads no counters, so steps can go on while it runs.

    Attributes:
        gammas: γ of each group, for each fragment that is averaged; at the end, the mean over the
            workers.
        roll: the workers in the average, set at its end.
        sound: whether this worker contributed, set at its end.
        changed: whether a part of the model or of the optimizer has changed.
    """

    roll: RollCall
    sound: bool

    def __init__(
        self,
        transport: Transport,
        name: str,
        slow: Slow,
        cross: Callable[[bool], Crossing],
        gammas: dict[int, list[float]],
        header: Header,
        *,
        fragments: int,
        news: bool,
    ) -> None:
        """Prepare it; nothing is sent yet.

        Args:
            transport: how to send.
            name: the name of the collectives, which nothing else uses in the meantime.
            slow: has the displacements, and takes the outer steps.
            cross: returns what else is sent, given whether this worker contributes. It is called
                once it is certain that the sync takes place.
            gammas: γ of this worker.
            header: what this worker reports about itself. Its settings have α and β of each
                fragment that takes an outer step.
            fragments: the number of fragments in all.
            news: as in `Inner.has_news`, for a worker that is sound.
        """
        self._transport = transport
        self._name = name
        self._slow = slow
        self._cross = cross
        self.gammas = gammas
        self._fragments = fragments
        self._zeros = [0.0] * len(next(iter(gammas.values())))
        self._header = header
        self._news = news
        self.changed = False
        self._squares = self._squares_of_sum = self._squares_of_all = 0.0
        self._weights: dict[int, float] = {}  # this worker's, if it contributes
        self._kept: list[_Kept] = []
        self._clipped = 1.0
        self.bytes = 0  #: handed to allreduce
        self.waited = 0.0  #: seconds spent waiting for the wire and for slower workers

    def carry_out(self) -> None:
        """Carry the average out. A collective.

        Raises:
            RuntimeError: the ranks are in different syncs.
            FloatingPointError: weights are not finite, as in `call_roll`. Either error is the same
                on every rank, and nothing has changed.
        """
        sent, waited = self._transport.sent, self._transport.waited
        self._read_header()
        crossing = self._cross(self.sound)
        figures: list[Any] = []
        self.changed = crossing.changed

        def loads() -> Iterator[Load]:
            yield from self._displacements()
            # All are packed; the last ones have not landed yet.
            name = f"{self._name}.figures"
            figures.append(self._transport.start_numbers([float(self._squares)], name))
            yield from crossing.loads(self.roll, f"{self._name}.inner", news=self._news)

        send(loads(), self._transport, self._name)
        self._take_kept()
        (self._squares_of_all,) = self._transport.finish_numbers(figures[0])
        crossing.end()
        self.bytes = self._transport.sent - sent
        self.waited = self._transport.waited - waited

    def _read_header(self) -> None:
        """Learn who takes part, γ of each group over the workers, and whether there is news.

        The header has the same length whatever is averaged, so ranks in different syncs can read
        it.
        """
        gammas = [self.gammas.get(fragment, self._zeros) for fragment in range(self._fragments)]
        own = [float(self._news), *itertools.chain(*gammas)]
        if not self._header.sound:
            own = [0.0] * len(own)
        self.roll, (news, *sums) = self._header.send(self._transport, own, self._name)
        self._news = news > 0
        rank = self._transport.ranks[self._transport.place]
        self.sound = rank not in self.roll.excluded
        if self.sound:
            self._weights = {fragment: self.roll.weight(rank, fragment) for fragment in self.gammas}
        groups = len(self._zeros)
        for fragment in self.gammas:
            of_fragment = sums[fragment * groups : (fragment + 1) * groups]
            self.gammas[fragment] = [total / self.roll.sound for total in of_fragment]

    def _displacements(self) -> Iterator[Load]:
        for fragment, gammas in self.gammas.items():
            steps = [self._header.settings.outer_step(fragment, gamma) for gamma in gammas]
            for index, bucket in enumerate(self._slow.buckets_of(fragment)):
                name = f"fragment{fragment}.bucket{index}"
                yield _Displacement(self, name, fragment, bucket, steps)

    def pack(self, fragment: int, bucket: Bucket, wire: Any) -> None:
        """Write this worker's displacement, multiplied by its weight."""
        if self.sound:
            weight = self._weights[fragment]
            self._squares += weight * self._slow.displacement(bucket, wire)
            if weight != 1:
                self._slow.scale(wire, weight)
        else:
            self._slow.nothing(wire)

    def land(self, fragment: int, bucket: Bucket, total: Any, steps: Sequence[OuterStep]) -> None:
        """Take the outer step from the workers' sum, or keep the sum until it can be clipped."""
        self.changed = True
        if self._limit is not None and fragment in self._header.settings.outer:
            kept, squares = self._slow.keep(bucket, total)
            self._kept.append(_Kept(fragment, bucket, kept, squares, steps))
        else:
            self._step(bucket, total, steps)

    def _step(self, bucket: Bucket, total: Any, steps: Sequence[OuterStep]) -> None:
        self._squares_of_sum += self._slow.outer_step(bucket, total, self.roll.contributors, steps)

    @property
    def _samples(self) -> int:
        first = next(iter(self.gammas))
        return sum(self.roll.samples[first].values()) if self.roll.samples else 0

    @property
    def _limit(self) -> float | None:
        return self._header.config.clip_displacement

    def _take_kept(self) -> None:
        """Take the outer steps from the kept sums, clipped. Equal on every rank, like the sums."""
        factors = {fragment: self._clip(fragment) for fragment in self.gammas}
        self._clipped = min(factors.values())
        while self._kept:  # each is freed as soon as it is used
            fragment, bucket, total, _, steps = self._kept.pop(0)
            self._step(bucket, total, [step.clipped(factors[fragment]) for step in steps])

    def _clip(self, fragment: int) -> float:
        """The factor for a fragment's d̄ that brings the norm of d̄/γ within the limit."""
        gammas, squares = self.gammas[fragment], 0.0
        for kept in (kept for kept in self._kept if kept.fragment == fragment):
            for run, square in zip(kept.bucket.runs, kept.squares, strict=True):
                gamma = gammas[run.group]
                # A group without γ adds nothing to u, and has hardly moved.
                squares += float(square) / gamma**2 if is_usable(gamma) else 0.0
        norm = math.sqrt(squares) / self.roll.contributors
        return 1.0 if self._limit is None or norm <= self._limit else self._limit / norm

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
        """The record of this average, after its end."""
        workers = self.roll.contributors
        norm = math.sqrt(float(self._squares_of_sum)) / workers
        outer = self._header.settings.outer.get(next(iter(self.gammas)), PLAIN_SETTINGS)
        return SyncRecord(
            kind=kind,
            step=self._header.step,
            window=window,
            workers=workers,
            learning_rates=tuple(gamma for gammas in self.gammas.values() for gamma in gammas),
            bytes=self.bytes,
            seconds=seconds,
            displacement_norm=norm,
            drift=math.sqrt(max(self._squares_of_all / workers - norm**2, 0.0)),
            excluded=self.roll.excluded,
            outliers=self.roll.outliers,
            fragments=tuple(self.gammas),
            waiting=waiting,
            hidden=hidden,
            sync_period=period,
            slow_lr=outer.slow_lr,
            slow_momentum=outer.slow_momentum,
            clipped=self._clipped,
            samples=self._samples,
        )


class NoCrossing:
    """The inner optimizer's part in a sync where none of its state is sent or changed."""

    changed = False

    def __init__(self, sound: bool) -> None:
        """Accept the argument of every crossing."""

    def loads(self, roll: RollCall, name: str, *, news: bool) -> Iterator[Load]:
        """Send nothing."""
        return iter(())

    def end(self) -> None:
        """Do nothing."""


class _Displacement:
    """A bucket of displacements."""

    exact = False

    def __init__(
        self,
        average: Average,
        name: str,
        fragment: int,
        bucket: Bucket,
        steps: Sequence[OuterStep],
    ) -> None:
        self.name, self.room, self.size = name, bucket.room, bucket.size
        self._average, self._fragment, self._bucket = average, fragment, bucket
        self._steps = steps

    def pack(self, wire: Any) -> None:
        self._average.pack(self._fragment, self._bucket, wire)

    def land(self, total: Any) -> None:
        self._average.land(self._fragment, self._bucket, total, self._steps)


class _Kept(NamedTuple):
    """A sum that is kept until it can be clipped."""

    fragment: int
    bucket: Bucket
    total: Any
    squares: Sequence[Any]  #: of each of the bucket's runs
    steps: Sequence[OuterStep]
