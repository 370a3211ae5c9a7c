"""How far an average is overlapped with training."""

from typing import Any


def pace(period: int, *, overlap: float, fragments: bool = False) -> dict[str, Any]:
    """The arguments of our optimizer.

    Args:
        period: τ.
        overlap: the part of a window that goes on while an average is under way; 0 for none.
        fragments: whether the parameters are dealt into parts, which are three.
    """
    arguments = {}
    if overlap:
        arguments["overlap_steps"] = max(1, round(period * overlap))
    if fragments:
        arguments["fragments"] = min(3, period)
    return arguments
