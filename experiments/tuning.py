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


def lacking_rates(setting: Setting, store: Store) -> list[float]:
    """The learning rates to try next for a setting; none where the search is over."""
    task = TASKS[setting.task]
    return next_rates(task.rates, task.middle, _tried(setting, store))


def chosen_rate(setting: Setting, store: Store) -> float | None:
    """A setting's learning rate; None where the search is not over."""
    return None if lacking_rates(setting, store) else best(_tried(setting, store))


def _tried(setting: Setting, store: Store) -> dict[float, float]:
    selects = TASKS[setting.task].selects
    return {run.lr: loss_of(store[run], selects) for run in store.of(setting) if run.seed == SEED}


def loss_of(result: Mapping[str, Any], selects: str) -> float:
    """What a run is judged by when a learning rate is chosen.

    Args:
        result: of the run.
        selects: the figure.
    """
    return math.inf if result["diverged"] else float(result["looks"][-1][selects])
