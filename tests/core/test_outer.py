"""The outer step's four coefficients against lines 7 and 8 of Algorithm 1."""

import math
import sys
from typing import Any

import numpy as np
import pytest

from slowmo_hvd.core.config import OuterSettings, SlowMoConfig
from slowmo_hvd.core.outer import PLAIN_AVERAGE, SMALLEST_GAMMA, OuterStep, outer_step


def settings(**given: Any) -> OuterSettings:
    return SlowMoConfig(**given).outer_settings(0)


def apply(step: OuterStep, x0: float, u: float, displacement: float) -> tuple[float, float]:
    """As every adapter does it: x first, then u from the same u_t."""
    x = x0 - step.step * displacement - step.carry * u
    return x, step.decay * u + step.gain * displacement


def papers_lines(
    x0: float, u: float, displacement: float, gamma: float, config: OuterSettings
) -> tuple[float, float]:
    gradient = displacement / gamma
    u = config.slow_momentum * u + gradient
    direction = gradient + config.slow_momentum * u if config.nesterov else u
    return x0 - config.slow_lr * gamma * direction, u


def test_one_step_by_hand() -> None:
    # u = 0.5 · 3 + 2/0.25 = 9.5 and x = 10 - 2 · 0.25 · 9.5 = 5.25.
    step = outer_step(settings(slow_lr=2, slow_momentum=0.5), 0.25)
    assert step == OuterStep(step=2, carry=0.25, decay=0.5, gain=4)
    assert apply(step, 10.0, 3.0, 2.0) == (5.25, 9.5)


def test_one_nesterov_step_by_hand() -> None:
    # u = 9.5 as above, and x = 10 - 2 · 0.25 · (8 + 0.5 · 9.5) = 3.625.
    step = outer_step(settings(slow_lr=2, slow_momentum=0.5, nesterov=True), 0.25)
    assert step == OuterStep(step=3, carry=0.125, decay=0.5, gain=4)
    assert apply(step, 10.0, 3.0, 2.0) == (3.625, 9.5)


@pytest.mark.parametrize("gamma", [1e-30, 1e-6, 0.1, 1.0, 30.0, -1e-30, -0.1, -30.0])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.5), (0.7, 0.9), (2.0, 0.1)])
def test_the_coefficients_are_the_papers_lines(
    alpha: float, beta: float, nesterov: bool, gamma: float
) -> None:
    config = OuterSettings(alpha, beta, nesterov)
    start = (2.5, -1.5, 3 * gamma)
    ours = apply(outer_step(config, gamma), *start)
    assert ours == pytest.approx(papers_lines(*start, gamma, config), rel=1e-14)


def test_without_momentum_and_at_alpha_one_it_is_the_mean() -> None:
    step = outer_step(settings(slow_momentum=0), 0.1)
    assert (step.step, step.carry) == (1.0, 0.0)


def test_the_warm_ups_step_is_the_mean_and_leaves_the_momentum() -> None:
    assert apply(PLAIN_AVERAGE, 10.0, 3.0, 2.0) == (8.0, 3.0)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(
    "gamma",
    [0.0, sys.float_info.min, math.nextafter(SMALLEST_GAMMA, 0), -sys.float_info.min],
)
def test_at_gamma_zero_the_displacement_is_kept_and_the_momentum_waits(
    gamma: float, nesterov: bool
) -> None:
    step = outer_step(settings(slow_lr=0.5, slow_momentum=0.5, nesterov=nesterov), gamma)
    assert step == OuterStep(step=0.5, carry=0.0, decay=1.0, gain=0.0)
    assert apply(step, 10.0, 3.0, 2.0) == (9.0, 3.0)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("sign", [1, -1])
def test_at_the_smallest_gamma_every_coefficient_fits_a_float32(nesterov: bool, sign: int) -> None:
    step = outer_step(settings(slow_momentum=0.9, nesterov=nesterov), sign * SMALLEST_GAMMA)
    with np.errstate(all="raise"):
        assert all(np.isfinite(np.float32(value)) for value in step)
    assert step.gain == sign * 2.0**126
