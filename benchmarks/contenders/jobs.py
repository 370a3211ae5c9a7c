"""Which jobs a run has, and in which order."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from benchmarks.contenders.registry import with_baselines
from benchmarks.contenders.works import measures, work
from benchmarks.network.rates import UNSHAPED, bits_a_second

MEASURES = ("speed", "sync", "learn")
PERIOD = 12  # τ of a training
SYNC_PERIOD = 4  # of the sync alone
GRID = (0.5, 1.0, 2.0)  # times a work's learning rate
SCALE = ("sync1m", "sync10m", "sync50m", "sync200m")


@dataclasses.dataclass(frozen=True)
class Job:
    """One contender, measured once, in processes of its own."""

    measure: str
    work: str
    contender: str
    ranks: int
    rate: str
    repetition: int
    lr: float

    @property
    def key(self) -> str:
        """What tells it from all others; a learning rate matters only to what is learnt."""
        parts = [self.measure, self.work, self.contender, self.ranks, self.rate, self.repetition]
        return "/".join(map(str, parts + ([f"{self.lr:g}"] if self.measure == "learn" else [])))

    def __str__(self) -> str:
        lr = f", lr {self.lr:g}" if self.measure == "learn" else ""
        return (
            f"{self.measure} {self.work} {self.contender}, {self.ranks} ranks, {self.rate}{lr}, "
            f"repetition {self.repetition + 1}"
        )


def rounds(rate: str) -> int:
    """How many syncs are timed in a job: fewer on a slow link, whose times vary little."""
    bits = bits_a_second(rate)
    if bits is None:
        return 7
    return 5 if bits >= 5e8 else 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was asked for.

    Attributes:
        rates: of the links.
        ranks: numbers of them.
        works: by name.
        contenders: by name; what they are compared with is added.
        measures: some of MEASURES.
        repetitions: how often each job is done.
        grid: whether to look for learning rates and do nothing else.
    """

    rates: Sequence[str]
    ranks: Sequence[int]
    works: Sequence[str]
    contenders: Sequence[str]
    measures: Sequence[str]
    repetitions: int
    grid: bool = False

    def jobs(self, learning_rate: Callable[[str, str, int], float | None]) -> list[Job]:
        """All jobs, the repetitions in turns.

        Args:
            learning_rate: the best that is known for a work, a contender and a number of ranks.
        """
        repetitions = 1 if self.grid else self.repetitions
        return [job for number in range(repetitions) for job in self._once(number, learning_rate)]

    def _once(
        self, repetition: int, learning_rate: Callable[[str, str, int], float | None]
    ) -> Iterator[Job]:
        for ranks in self.ranks:
            for name in self.works:
                middle = work(name).lr
                for measure in self._measures(name):
                    contenders = with_baselines(self.contenders, measure)
                    first = repetition % max(len(contenders), 1)
                    for rate in [UNSHAPED] if measure == "learn" else self.rates:
                        for contender in contenders[first:] + contenders[:first]:
                            lrs = [learning_rate(name, contender, ranks) or middle]
                            if self.grid:
                                lrs = [middle * factor for factor in GRID]
                            for lr in lrs if measure == "learn" else [middle]:
                                yield Job(measure, name, contender, ranks, rate, repetition, lr)

    def _measures(self, name: str) -> list[str]:
        wanted = {"learn"} if self.grid else set(MEASURES)
        return [m for m in measures(name) if m in wanted and m in self.measures]
