"""τ, α and β of the window that begins and of the one that ends: the same on every rank.

A user's callable is Python code. It may depend on something that differs between ranks, or fail on
one of them. So each worker calls it before the header of a sync, and the header compares the
results.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from slowmo_hvd.core.config import OuterSettings, SlowMoConfig
from slowmo_hvd.core.gathering import Gather, gather_json
from slowmo_hvd.core.outer import PLAIN_AVERAGE, OuterStep, outer_step
from slowmo_hvd.core.schedule import Schedule

_FAILED = -1.0
PLAIN_SETTINGS = OuterSettings(slow_lr=1.0, slow_momentum=0.0, nesterov=False)


class Settings(NamedTuple):
    """The settings of one sync.

    Attributes:
        outer: α, β and the form of the outer step of each fragment that takes one.
        periods: τ of each fragment's window that begins.
        error: the error that a user's callable raised here.
    """

    outer: Mapping[int, OuterSettings]
    periods: Mapping[int, int]
    error: Exception | None = None

    def outer_step(self, fragment: int, gamma: float) -> OuterStep:
        """The outer step of a parameter group with this γ; the plain mean if it takes none."""
        settings = self.outer.get(fragment)
        return PLAIN_AVERAGE if settings is None else outer_step(settings, gamma)

    @property
    def mark(self) -> float:
        """The number that this worker sends: a checksum above 0, or -1 if a callable failed."""
        if self.error is not None:
            return _FAILED
        return 1.0 + zlib.crc32(repr(self._values).encode())

    @property
    def _values(self) -> list[Any]:
        outer = [(alpha, beta) for alpha, beta, _ in self.outer.values()]
        return [sorted(self.periods.items()), outer]

    def said(self) -> str:
        """The settings as text, for people."""
        parts = [f"sync_period={period}" for period in self.periods.values()]
        parts += [f"slow_lr={a}, slow_momentum={b}" for a, b, _ in self.outer.values()]
        return ", ".join(dict.fromkeys(parts))


def settings_of(
    config: SlowMoConfig, schedule: Schedule, fragments: Sequence[int], *, outer: bool, begins: bool
) -> Settings:
    """The settings for a sync of these fragments after the step that was counted last.

    Args:
        config: has the numbers and the callables.
        schedule: the counters.
        fragments: the fragments in the sync.
        outer: whether an outer step is taken.
        begins: whether a window begins.
    """
    try:
        return Settings(
            {f: config.outer_settings(schedule.windows[f]) for f in fragments if outer},
            {f: schedule.next_period(f) for f in fragments if begins},
        )
    except Exception as error:  # any error of the user's callable: the others wait for us
        return Settings({}, {}, error)


def check_settings(
    settings: Settings, marks: Sequence[float], ranks: Sequence[int], step: int, gather: Gather
) -> None:
    """Raise on every rank unless all ranks have the same settings.

    Args:
        settings: this worker's settings.
        marks: the marks of all workers, from a collective; 0 for a worker that has none.
        ranks: the global rank of each worker.
        step: the number of local steps attempted.
        gather: a collective, in which the ranks tell each other what differs.

    Raises:
        RuntimeError: the settings differ, or a user's callable failed on a rank.
    """
    by_rank = {rank: mark for rank, mark in zip(ranks, marks, strict=True) if mark}
    if _FAILED in by_rank.values():
        error = settings.error
        said = gather_json("" if error is None else f"{type(error).__name__}: {error}", gather)
        first = min(rank for rank, mark in by_rank.items() if mark == _FAILED)
        raise RuntimeError(
            f"sync_period, slow_lr or slow_momentum failed on rank {first} in the sync after step "
            f"{step}: {said[first]}"
        ) from error
    if len(set(by_rank.values())) > 1:
        said = gather_json(settings.said(), gather)
        root = min(said)
        other = next(rank for rank in sorted(said) if by_rank[rank] != by_rank[root])
        raise RuntimeError(
            f"the ranks differ in sync_period, slow_lr or slow_momentum in the sync after step "
            f"{step}: {said[root]} on rank {root}, {said[other]} on rank {other}; a callable must "
            "give the same on every rank"
        )
