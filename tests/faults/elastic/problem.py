"""A small regression task whose batches depend on the seed, the step and the rank alone."""

import numpy as np

BATCH, INPUTS = 32, 8


def _target(x: np.ndarray) -> np.ndarray:
    weights = np.linspace(-1, 1, INPUTS, dtype="float32")
    return np.tanh(x @ weights)[:, None]


def batch(seed: int, step: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and noisy targets."""
    draw = np.random.default_rng([seed, step, rank])
    x = draw.standard_normal((BATCH, INPUTS), dtype="float32")
    return x, _target(x) + 0.1 * draw.standard_normal((BATCH, 1), dtype="float32")


def evaluation() -> tuple[np.ndarray, np.ndarray]:
    """Inputs and exact targets, the same in every run."""
    x = np.random.default_rng(12345).standard_normal((512, INPUTS), dtype="float32")
    return x, _target(x)


def learning_rate(step: int, steps: int) -> float:
    """A linear decay to a tenth."""
    return 0.1 * (1 - 0.9 * step / steps)
