"""The courses and paces that both adapters are compared with the NumPy reference on."""

from typing import NamedTuple


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
