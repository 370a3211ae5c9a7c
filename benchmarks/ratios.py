"""What a benchmark says of ratios that it measured in turns."""

import statistics
from collections.abc import Sequence


def summary(ratios: Sequence[float], base: str, seconds: Sequence[float]) -> str:
    """The median ratio and its range, and the median time of what is divided by.

    Args:
        ratios: one for each round.
        base: what is divided by, such as "raw".
        seconds: its time in each round.
    """
    return (
        f"median ratio {statistics.median(ratios):.2f} "
        f"(min {min(ratios):.2f}, max {max(ratios):.2f}, {len(ratios)} rounds; "
        f"{base} {statistics.median(seconds) * 1e3:.0f} ms)"
    )
