"""Which learning rate is a method's: the same grid for all, the best on the validation split."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.settings import Setting
from experiments.store import Store
from experiments.tasks import TASKS

SEED = 0  #: with which the learning rates are tried


def next_rates(grid: Sequence[float], middle: float, tried: Mapping[float, float]) -> list[float]:
    """The learning rates to try next; none if the best of those tried lies between two others.

    The search begins with the middle of the grid and its neighbours and goes towards the lower
    loss, so that a method's best is at the grid's end only where the grid has no more. It assumes
    one valley. Which ones are tried does not hang on the order in which trainings end.

    Args:
        grid: all, ascending.
        middle: one of them, at which to begin.
        tried: the loss of each that was tried; infinite where the training diverged.
    """
    for around in (middle, *([best(tried)] if tried else [])):
        at = grid.index(around)
        lacking = [rate for rate in grid[max(at - 1, 0) : at + 2] if rate not in tried]
        if lacking:
            return lacking
    return []


def best(tried: Mapping[float, float]) -> float:
    """The learning rate with the lowest loss; the lowest rate where none has come through."""
    return min(tried, key=lambda rate: (tried[rate], rate))


def tried_rates(setting: Setting, store: Store) -> dict[float, float]:
    """The loss of each learning rate that was tried for a setting."""
    selects = TASKS[setting.task].selects
    return {run.lr: loss_of(store[run], selects) for run in store.of(setting) if run.seed == SEED}


def chosen_rate(setting: Setting, store: Store) -> float | None:
    """A setting's learning rate; None where the search is not over."""
    task, tried = TASKS[setting.task], tried_rates(setting, store)
    return None if next_rates(task.rates, task.middle, tried) else best(tried)


def loss_of(result: Mapping[str, Any], selects: str) -> float:
    """What a run is judged by when a learning rate is chosen.

    Args:
        result: of the run.
        selects: the figure.
    """
    return math.inf if result["diverged"] else float(result["looks"][-1][selects])
