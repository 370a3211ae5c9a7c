"""Schedules that `sync_period`, `slow_lr` and `slow_momentum` may be: `slowmo_hvd.schedules`."""

import dataclasses
import math
from typing import Any

from slowmo_hvd.core.checks import check_integer, check_number, check_positive

_FINITE = "a finite number"


@dataclasses.dataclass(frozen=True)
class Constant:
    """One value all along."""

    value: float

    def __call__(self, at: int) -> float:
        """It."""
        return self.value


@dataclasses.dataclass(frozen=True)
class Linear:
    """From ``first`` to ``last`` in ``length`` equal steps, and ``last`` from there on."""

    first: float
    last: float
    length: int

    def __call__(self, at: int) -> float:
        """The value there; of two whole numbers, rounded to the nearest."""
        way = min(at / self.length, 1.0)
        value = self.first + (self.last - self.first) * way
        whole = isinstance(self.first, int) and isinstance(self.last, int)
        return round(value) if whole else value


@dataclasses.dataclass(frozen=True)
class QSR:
    """The quadratic synchronization rule: see `qsr`."""

    base: int
    coefficient: float
    total_steps: int | None = None
    power: float = 2.0
    warmup_steps: int = 0

    def period(self, step: int, learning_rate: float, least: int) -> int:
        """τ of a window.

        Args:
            step: local steps taken when it begins.
            learning_rate: γ, agreed by the workers; 0 where none is.
            least: the shortest that a window may be.
        """
        period = self.base
        if learning_rate and step >= self.warmup_steps:
            ratio = min(abs(self.coefficient / learning_rate), 1e6)  # whose power is finite
            # Where γ begins near 0, the rule alone could give a window that outlasts the training.
            period = max(period, min(math.floor(ratio**self.power), step))
        if self.total_steps is not None and step < self.total_steps:
            period = min(period, self.total_steps - step)
        return max(period, least)


def constant(value: float) -> Constant:
    """One value all along; as good as the value itself.

    Raises:
        TypeError, ValueError: it is no finite number.
    """
    check_number("value", value, _FINITE)
    return Constant(value)


def linear(first: float, last: float, length: int) -> Linear:
    """A value that goes from ``first`` to ``last``, and stays there.

    As a `sync_period` it is a function of the local steps taken, and as a `slow_lr` or a
    `slow_momentum` of the windows that have ended; with two ints it is rounded to an int.

    Args:
        first: where it begins.
        last: where it ends.
        length: after how many steps, or windows; >= 1.

    Raises:
        TypeError, ValueError: an argument is not of that kind.
    """
    check_number("first", first, _FINITE)
    check_number("last", last, _FINITE)
    return Linear(first, last, check_integer("length", length, least=1))


def qsr(
    base: int,
    coefficient: float,
    *,
    total_steps: int | None = None,
    power: float = 2.0,
    warmup_steps: int = 0,
) -> QSR:
    """A `sync_period` that grows as the learning rate decays.

    τ = max(base, ⌊(c / γ)^power⌋): the quadratic synchronization rule of X. Gu, K. Lyu, S. Arora,
    J. Zhang, L. Huang, "A Quadratic Synchronization Rule for Distributed Deep Learning", ICLR 2024,
    arXiv 2310.14423. γ is the workers' mean over the window that has ended, of the parameter group
    where it is largest; with an overlap, that of the window before, since this one's is not known
    yet. The first window has ``base`` steps, and no later one has more than all steps before it.

    Args:
        base: H_base, the shortest window in local steps; >= 1.
        coefficient: c, the paper's α; > 0. Of the learning rate's size.
        total_steps: local steps of the whole training. The last window then ends with the last of
            them, but that with an overlap of d steps a window has d + 1 steps or more.
        power: 2 in the paper; > 0.
        warmup_steps: local steps in which the learning rate rises, and a window has ``base`` steps.

    Raises:
        TypeError, ValueError: an argument is not of that kind.
    """
    base = check_integer("base", base, least=1)
    coefficient, power = check_positive("coefficient", coefficient), check_positive("power", power)
    if total_steps is not None:
        total_steps = check_integer("total_steps", total_steps, least=1)
    warmup_steps = check_integer("warmup_steps", warmup_steps, least=0)
    return QSR(base, coefficient, total_steps, power, warmup_steps)


_SHIPPED = {cls.__name__: cls for cls in (Constant, Linear, QSR)}


def describe(setting: Any) -> Any:
    """A setting as a builtin that is the same on every rank and in every run.

    A number as it is; a schedule of this module with its numbers; another callable by its name.
    """
    if not callable(setting) and not isinstance(setting, QSR):
        return setting
    if type(setting) in _SHIPPED.values():
        return repr(setting)
    named = setting if hasattr(setting, "__qualname__") else type(setting)
    return f"{named.__module__}.{named.__qualname__}"


def to_config(setting: Any) -> Any:
    """A schedule of this module as a dict of builtins; anything else as it is."""
    if type(setting) not in _SHIPPED.values():
        return setting
    return {"schedule": type(setting).__name__, **dataclasses.asdict(setting)}


def from_config(setting: Any) -> Any:
    """What `to_config` was given."""
    if isinstance(setting, dict) and setting.get("schedule") in _SHIPPED:
        arguments = {name: value for name, value in setting.items() if name != "schedule"}
        return _SHIPPED[setting["schedule"]](**arguments)
    return setting
