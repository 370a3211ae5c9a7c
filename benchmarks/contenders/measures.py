"""How a rank measures: the speed of training, the time of a sync, and what is learnt."""

import time
from collections.abc import Callable
from typing import Any

from benchmarks.contenders.place import Place, bytes_sent, peak_memory
from benchmarks.contenders.protocol import Contender, Setting, Work

ALONE = 12  # steps of a contender that never exchanges anything, in a measurement
LEAST = 8  # steps of one that exchanges in each
PERIODS = 2  # of the others
WARM_UP = 3  # steps that are not timed, at least
WARM_PERIODS = 2  # likewise: an average that overlaps lands in the second


class Bench:
    """One rank's part of a job.

    Args:
        contender: what is measured.
        work: what it trains.
        setting: this rank's.
        place: where the ranks meet.
        interface: whose bytes are counted.
    """

    def __init__(
        self, contender: Contender, work: Work, setting: Setting, place: Place, interface: str
    ) -> None:
        self._contender = contender
        self._work = work
        self._setting = setting
        self._place = place
        self._interface = interface
        self._steps = 0

    def speed(self) -> dict[str, Any]:
        """Steps from one exchange to another, of which the first are not timed."""
        period = self._contender.period
        self._train(max(WARM_PERIODS, -(-WARM_UP // period)) * period if period else WARM_UP)
        steps = max(PERIODS, -(-LEAST // period)) * period if period else ALONE
        self._place.meet()
        sent = bytes_sent(self._interface)
        seconds = _seconds(lambda: self._train(steps))
        self._place.meet()  # else one that is done early would count for less
        sent = bytes_sent(self._interface) - sent
        peak = peak_memory()
        self._contender.finish()
        self._place.meet()
        return {
            "steps": steps,
            "seconds": seconds,
            "bytes": sent,
            "peak": peak,
            "batch": self._work.batch_size,
            "syncs": self._contender.sync_seconds(),
        }

    def sync(self, rounds: int) -> dict[str, Any]:
        """Rounds of steps with one exchange each, in turns with a raw allreduce if there is one."""
        contender = self._contender
        steps = contender.period or 1
        periods, raws, syncs, sent = [], [], [], 0
        for turn in range(WARM_PERIODS + rounds):
            known = len(contender.sync_seconds())
            self._place.meet()
            before = bytes_sent(self._interface)
            seconds = _seconds(lambda: self._train(steps))
            self._place.meet()
            counted = bytes_sent(self._interface) - before
            begin = time.perf_counter()
            there_is_one = contender.raw_allreduce()
            raw = time.perf_counter() - begin
            if turn < WARM_PERIODS:  # which pay for memory and for compiling
                continue
            periods.append(seconds)
            if own := contender.sync_seconds()[known:]:
                syncs.append(sum(own))  # one for each fragment
            sent += counted
            if there_is_one:
                raws.append(raw)
        contender.finish()
        self._place.meet()
        return {
            "steps": steps,
            "periods": periods,
            "raws": raws,
            "syncs": syncs,
            "bytes": sent / rounds,
            "parameters": self._work.parameters,
        }

    def learn(self, steps: int, every: int) -> dict[str, Any]:
        """Train, and look at the loss now and then, with the clock stopped."""
        losses = [(0, 0.0, self._loss())]
        trained = 0.0
        for number in range(1, steps + 1):
            trained += _seconds(self._step)
            if number % every == 0 and number < steps:
                losses.append((number, trained, self._loss()))
        trained += _seconds(self._contender.finish)
        losses.append((steps, trained, self._loss()))
        self._place.meet()
        return {"losses": losses}

    def _train(self, steps: int) -> None:
        for _ in range(steps):
            self._step()

    def _step(self) -> None:
        batch = self._work.batch(self._setting, self._steps)
        self._steps += 1
        self._contender.step(batch)

    def _loss(self) -> float:
        batches = self._work.held_out()
        return sum(map(self._contender.loss, batches)) / len(batches)


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
