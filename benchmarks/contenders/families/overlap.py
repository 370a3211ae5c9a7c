"""How far an average is overlapped with training."""

from typing import Any


def pace(period: int, *, overlap: bool, fragments: bool = False) -> dict[str, Any]:
    """The arguments of our optimizer: half the window, and three fragments.

    Args:
        period: τ.
        overlap: whether local steps go on while an average is under way.
        fragments: whether the parameters are dealt into parts.
    """
    arguments = {}
    if overlap:
        arguments["overlap_steps"] = max(1, period // 2)
    if fragments:
        arguments["fragments"] = min(3, period)
    return arguments
