"""The courses and paces that both adapters are compared with the NumPy reference on."""

from typing import Any, NamedTuple

from slowmo_hvd import schedules
from slowmo_hvd.core.config import SlowMoConfig


class Course(NamedTuple):
    """A learning-rate schedule, and what happens on the way."""

    schedule: str
    warmup_steps: int = 0
    flush_after: tuple[int, ...] = ()
    sync_period: int = 3


COURSES = {
    "constant": Course("constant"),
    "decay": Course("decaying in and between windows", sync_period=4),
    "from zero": Course("from zero", flush_after=(2, 7)),
    "to zero": Course("to zero", warmup_steps=2),
    "warm-up from zero": Course("from zero", warmup_steps=5),
    "warm-up and flushes": Course(
        # In the warm-up, at its end, where a window has one step, twice in a row, where it ends.
        "decaying in and between windows",
        warmup_steps=3,
        flush_after=(1, 3, 4, 5, 8, 10),
    ),
    "every step": Course("constant", sync_period=1),
}

PACES = [{"overlap_steps": 1}, {"overlap_steps": 2}, {"fragments": 2}]
PACES += [{"fragments": 2, "overlap_steps": d} for d in (1, 2)]


def growing(step: int) -> int:
    """τ from 2 to 6."""
    return 2 + step // 4


def shrinking(window: int) -> float:
    """α from 1 to 1/6 or so."""
    return 1 / (1 + window)


#: Settings that change from window to window.
CHANGING: dict[str, dict[str, Any]] = {
    "functions": {"sync_period": growing, "slow_lr": shrinking},
    "lines": {
        "sync_period": schedules.linear(6, 2, 12),
        "slow_momentum": schedules.linear(0.0, 0.6, 3),
        "nesterov": True,
    },
    "QSR": {"sync_period": schedules.qsr(2, 0.2, total_steps=16)},
    "QSR after a warm-up": {"sync_period": schedules.qsr(2, 0.1, warmup_steps=7)},
    "QSR with an overlap": {"sync_period": schedules.qsr(3, 0.2), "overlap_steps": 2},
    "QSR of fragments": {"sync_period": schedules.qsr(3, 0.2), "fragments": 2, "overlap_steps": 1},
}


CLIPPED: dict[str, dict[str, Any]] = {
    "a clip": {"sync_period": 3, "clip_displacement": 1.0, "nesterov": True},
    "a clip of fragments": {
        "sync_period": 3,
        "clip_displacement": 1.0,
        "fragments": 2,
        "overlap_steps": 1,
    },
}


def changing_config(course: str, changing: str) -> SlowMoConfig:
    """The configuration of a course whose settings change, or clip."""
    settings = {**CHANGING, **CLIPPED}[changing]
    return SlowMoConfig(**{"warmup_steps": COURSES[course].warmup_steps, **settings})
