"""What the PyTorch adapter, the TensorFlow adapter and the NumPy reference are driven through."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from problem import X0, Array, gradient

from slowmo_hvd import schedules

STEPS = 23  # over five windows
MOMENTUM = 0.9
BETAS = (0.8, 0.95)
EPSILON = 1e-10


class Case(NamedTuple):
    inner: str
    slowmo: dict[str, Any]
    flush_after: tuple[int, ...] = ()

    def lr(self, step: int) -> float:
        """Changes in every step, inside the windows too."""
        return 0.1 * 0.93**step

    @property
    def name(self) -> str:
        return "-".join([self.inner, *(f"{name}={value}" for name, value in self.slowmo.items())])


def cases() -> Iterator[Case]:
    for inner, buffers in itertools.product(("SGD", "Adam"), ("reset", "maintain", "average")):
        yield Case(inner, {"buffers": buffers, "sync_period": 4, "slow_momentum": 0.6})
    yield Case("SGD", {"sync_period": 3, "slow_momentum": 0.5, "warmup_steps": 5})
    yield Case("Adam", {"sync_period": 3, "slow_momentum": 0.9, "slow_lr": 0.7, "nesterov": True})
    yield Case("Adam", {"sync_period": 5, "slow_momentum": 0.0, "warmup_steps": 1}, (2, 9))
    for pace in ({"overlap_steps": 2}, {"fragments": 2}, {"overlap_steps": 3, "fragments": 2}):
        settings = {"sync_period": 4, "slow_momentum": 0.6, "warmup_steps": 1, **pace}
        yield Case("SGD", settings)
        yield Case("Adam", settings, (3, 9, 12))
    rule = schedules.qsr(3, 0.3)
    for inner, more in (("SGD", {}), ("Adam", {"overlap_steps": 2, "fragments": 2})):
        changing = {"sync_period": rule, "slow_momentum": schedules.linear(0.0, 0.6, 3), **more}
        yield Case(inner, changing, (4,))


def drive(adapter: Any, rank: int, folder: Path, framework: str) -> None:
    """Train through every case; save this rank's weights after each step.

    Args:
        adapter: makes, for a case, an object with ``step(lr, gradient_at)``, ``flush()`` and
            ``weights()``.
        rank: this worker's.
        folder: where to write ``framework-rank.npz``.
        framework: its name.
    """
    runs = {}
    for case in cases():
        training = adapter(case)
        rows = []
        for step in range(STEPS):
            training.step(case.lr(step), lambda x, step=step: gradient(rank, step, x))
            if step + 1 in case.flush_after:
                training.flush()
            rows.append(flat(training.weights()))
        runs[case.name] = np.array(rows)
    np.savez(folder / f"{framework}-{rank}.npz", **runs)


def flat(arrays: list[Array]) -> Array:
    """All numbers of a model of X0's shapes, as one row."""
    assert len(arrays) == len(X0)
    return np.concatenate([np.asarray(array, dtype=np.float64).ravel() for array in arrays])
