"""Schedules for `sync_period`, `slow_lr` and `slow_momentum`: `slowmo_hvd.schedules`."""

import dataclasses
import math
from typing import Any

from slowmo_hvd.core.checks import check_integer, check_number, check_positive

_FINITE = "a finite number"


@dataclasses.dataclass(frozen=True)
class Constant:
    """One value that never changes."""

    value: float

    def __call__(self, at: int) -> float:
        """Return the value."""
        return self.value


@dataclasses.dataclass(frozen=True)
class Linear:
    """From ``first`` to ``last`` in ``length`` equal steps, and ``last`` after that."""

    first: float
    last: float
    length: int

    def __call__(self, at: int) -> float:
        """The value at ``at``. If both ends are ints, it is rounded to the nearest int."""
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
            step: the number of local steps taken when the window begins.
            learning_rate: γ that the workers agree on; 0 if there is none yet.
            least: the smallest τ that a window may have.
        """
        period = self.base
        if learning_rate and step >= self.warmup_steps:
            ratio = min(abs(self.coefficient / learning_rate), 1e6)  # so that its power is finite
            # If γ begins near 0, the rule alone could give a window that outlasts the training.
            period = max(period, min(math.floor(ratio**self.power), step))
        if self.total_steps is not None and step < self.total_steps:
            period = min(period, self.total_steps - step)
        return max(period, least)


def constant(value: float) -> Constant:
    """A value that never changes. It has the same effect as the value itself.

    Raises:
        TypeError, ValueError: ``value`` is not a finite number.
    """
    check_number("value", value, _FINITE)
    return Constant(value)


def linear(first: float, last: float, length: int) -> Linear:
    """A value that goes from ``first`` to ``last``, and then stays there.

    As a `sync_period` it is a function of the local steps taken. As a `slow_lr` or a
    `slow_momentum` it is a function of the number of windows that have ended. If ``first`` and
    ``last`` are ints, the value is rounded to an int.

    Args:
        first: the first value.
        last: the last value.
        length: the number of steps, or windows, after which ``last`` is reached; >= 1.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
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
    where it is largest. With an overlap it is that of the window before, because that of the last
    one is not known yet. The first window has ``base`` steps. No later window has more steps than
    were taken before it.

    Args:
        base: H_base, the shortest window in local steps; >= 1.
        coefficient: c, which is α in the paper; > 0. It has the size of a learning rate.
        total_steps: the number of local steps in the whole training. The last window then ends with
            the last step, except that with an overlap of d steps every window has at least d + 1
            steps.
        power: 2 in the paper; > 0.
        warmup_steps: the number of local steps in which the learning rate rises. Windows that begin
            in them have ``base`` steps.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """
    base = check_integer("base", base, least=1)
    coefficient, power = check_positive("coefficient", coefficient), check_positive("power", power)
    if total_steps is not None:
        total_steps = check_integer("total_steps", total_steps, least=1)
    warmup_steps = check_integer("warmup_steps", warmup_steps, least=0)
    return QSR(base, coefficient, total_steps, power, warmup_steps)


_SHIPPED = {cls.__name__: cls for cls in (Constant, Linear, QSR)}


def describe(setting: Any) -> Any:
    """Describe a setting by a builtin that is the same on every rank and in every run.

    A number stays as it is. A schedule of this module is described with its numbers, and any other
    callable by its name.
    """
    if not callable(setting) and not isinstance(setting, QSR):
        return setting
    if type(setting) in _SHIPPED.values():
        return repr(setting)
    named = setting if hasattr(setting, "__qualname__") else type(setting)
    return f"{named.__module__}.{named.__qualname__}"


def to_config(setting: Any) -> Any:
    """A schedule of this module as a dict of builtins. Anything else stays as it is."""
    if type(setting) not in _SHIPPED.values():
        return setting
    return {"schedule": type(setting).__name__, **dataclasses.asdict(setting)}


def from_config(setting: Any) -> Any:
    """The inverse of `to_config`."""
    if isinstance(setting, dict) and setting.get("schedule") in _SHIPPED:
        arguments = {name: value for name, value in setting.items() if name != "schedule"}
        return _SHIPPED[setting["schedule"]](**arguments)
    return setting
