"""Checks of single values, for every argument that takes an int, a number or a bool."""

import math
import numbers
from collections.abc import Sequence
from typing import Any


def check_integer(name: str, value: Any, *, least: int) -> int:
    """``value`` as an int, or TypeError, or ValueError if it is below ``least``."""
    # In Python a bool is an int, but sync_period=True is a mistake, not a one.
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int >= {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be an int >= {least}, got {value}")
    return int(value)


def check_number(name: str, value: Any, legal: str) -> float:
    """``value`` as a finite float, or TypeError or ValueError that says what is ``legal``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {legal}, got {value!r}")
    try:
        number = float(value)
    except OverflowError:  # an int that is too large for a float
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be {legal}, got {number}")
    return number


def check_positive(name: str, value: Any, legal: str = "a finite number > 0") -> float:
    """``value`` as a finite float > 0, or TypeError or ValueError that says what is ``legal``."""
    number = check_number(name, value, legal)
    if number <= 0:
        raise ValueError(f"{name} must be {legal}, got {number}")
    return number


def check_flag(name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise TypeError unless ``value`` is a str, ValueError unless it is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        error = ValueError if isinstance(value, str) else TypeError
        raise error(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_copies(owner: str, keys: Any) -> tuple[str, ...]:
    """An optimizer's own ``second_copies`` as a tuple, or TypeError.

    Args:
        owner: the name of the optimizer's class.
        keys: the value of its attribute.
    """
    if not isinstance(keys, tuple | list) or not all(isinstance(key, str) for key in keys):
        raise TypeError(
            f"{owner}.second_copies must be a tuple of the names under which the optimizer keeps "
            f"copies of the weights, such as ('z',), got {keys!r}"
        )
    return tuple(keys)
