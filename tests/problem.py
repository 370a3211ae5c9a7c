"""A tiny problem that makes workers drift apart, for the tests that compare whole runs.

Two parameter groups of a few numbers, and quadratics whose minimum differs between the workers and
wanders from step to step. The gradient is NumPy's alone, so that an adapter and its oracle can be
given the same one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

#: Exact in float32 too.
X0 = (np.array([1.0, -2.0, 0.5]), np.array([[3.0, -1.0], [0.25, 2.0]]))
CURVATURES = (np.array([0.5, 1.0, 1.5]), np.array([[1.25, 0.75], [2.0, 0.5]]))
STEPS = 17  # five windows of three steps, and two steps more

#: The learning rate of each group in each step, counted from 0.
SCHEDULES: dict[str, Callable[[int], tuple[float, float]]] = {
    "constant": lambda step: (0.1, 0.03),
    "decaying in and between windows": lambda step: (0.1 * 0.9**step, 0.3 / (2 + step)),
    # The first window of three steps is all zeros, the second begins with one.
    "from zero": lambda step: (0.02 * max(step - 3, 0), 0.01 * max(step - 3, 0)),
    # The last windows of three steps are all zeros.
    "to zero": lambda step: (0.02 * max(8 - step, 0), 0.01 * max(8 - step, 0)),
}


def gradient(worker: int, step: int, x: Sequence[Array]) -> list[Array]:
    """The gradient of worker ``worker``'s loss at x, one array for each group."""
    return [
        curvature * (value - 4 - 1.5 * worker - np.cos(step + 2 * worker + group))
        for group, (curvature, value) in enumerate(zip(CURVATURES, x, strict=True))
    ]


def mean_gradient(workers: int, step: int, x: Sequence[Array]) -> list[Array]:
    """The gradient of the workers' mean loss at x."""
    by_worker = [gradient(worker, step, x) for worker in range(workers)]
    return [np.mean(of_all, axis=0) for of_all in zip(*by_worker, strict=True)]


def assert_close(actual: Sequence[Any], expected: Sequence[Any], tolerance: float) -> None:
    """Compare arrays, group by group, relative to the group's largest number."""
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        ours, theirs = (np.asarray(value, dtype=np.float64) for value in (ours, theirs))
        scale = max(float(np.max(np.abs(theirs))), 1e-3)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)
