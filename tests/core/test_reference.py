"""The NumPy reference: worked by hand, and against the optimizers that SlowMo reduces to."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from problem import SCHEDULES, STEPS, X0, Array, assert_close, gradient, mean_gradient

from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.reference import SGD, Adam, State, slowmo
from slowmo_hvd.core.schedules import qsr

WORKERS = (1, 2, 3, 4)
EVERY_STEP = 1e-12


def run(config: SlowMoConfig, base: Any, schedule: str, workers: int, **options: Any) -> Any:
    settings: dict[str, Any] = {"steps": STEPS, "lr": SCHEDULES[schedule], **options}
    return slowmo(
        X0,
        settings.pop("gradient", gradient),
        base=base,
        config=config,
        workers=workers,
        **settings,
    )


def by_hand(config: SlowMoConfig, steps: int, **options: Any) -> list[State]:
    """Two workers from 10 with the constant gradients 1 and 3, at the learning rate 0.5."""
    settings: dict[str, Any] = {"base": SGD(), "lr": lambda step: [0.5], **options}
    return list(
        slowmo(
            [10.0],
            lambda worker, step, x: [1.0 + 2 * worker],
            config=config,
            workers=2,
            steps=steps,
            **settings,
        )
    )


def path(states: list[State], worker: int) -> list[float]:
    return [float(state.x[worker][0]) for state in states]


# ---- by hand -------------------------------------------------------------------------------


def test_a_negative_learning_rate_is_the_mirror_image() -> None:
    states = by_hand(SlowMoConfig(sync_period=2, slow_momentum=0.5), 6, lr=lambda step: [-0.5])
    assert path(states, 0) == [10.5, 12, 12.5, 15, 15.5, 18.5]
    assert [float(state.momentum[0]) for state in states] == [0, 4, 4, 6, 6, 7]


def test_two_workers_by_hand() -> None:
    # d̄ is 2 in each window, so d̄/γ is 4 and u = 4, 6, 7; x falls by γu = 2, 3, 3.5.
    states = by_hand(SlowMoConfig(sync_period=2, slow_momentum=0.5), 6)
    assert path(states, 0) == [9.5, 8, 7.5, 5, 4.5, 1.5]
    assert path(states, 1) == [8.5, 8, 6.5, 5, 3.5, 1.5]
    assert [float(state.momentum[0]) for state in states] == [0, 4, 4, 6, 6, 7]
    assert [float(state.anchor[0]) for state in states] == [10, 8, 8, 5, 5, 1.5]
    assert [state.windows[0] for state in states] == [0, 1, 1, 2, 2, 3]
    assert [state.step for state in states] == [1, 2, 3, 4, 5, 6]


def test_the_slow_learning_rate_scales_the_outer_step_and_not_u() -> None:
    states = by_hand(SlowMoConfig(sync_period=2, slow_momentum=0.5, slow_lr=2.0), 4)
    assert [float(state.momentum[0]) for state in states] == [0, 4, 4, 6]
    assert [float(state.anchor[0]) for state in states] == [10, 6, 6, 0]


def test_nesterov_looks_ahead_by_one_more_momentum() -> None:
    # u = 4, 6; x falls by γ(d̄/γ + βu) = 0.5 (4 + 2), 0.5 (4 + 3).
    states = by_hand(SlowMoConfig(sync_period=2, slow_momentum=0.5, nesterov=True), 4)
    assert [float(state.momentum[0]) for state in states] == [0, 4, 4, 6]
    assert [float(state.anchor[0]) for state in states] == [10, 7, 7, 3.5]


def test_the_outer_step_shrinks_at_once_when_the_learning_rate_does() -> None:
    # At γ = 0.25 d̄ halves to 1, d̄/γ is 4 as before, u = 4, 6, and x falls by 0.25 · 6.
    config = SlowMoConfig(sync_period=2, slow_momentum=0.5)
    states = by_hand(config, 4, lr=lambda step: [0.5 if step < 2 else 0.25])
    assert [float(state.momentum[0]) for state in states] == [0, 4, 4, 6]
    assert path(states, 0)[-1] == 8 - 1.5


def test_gamma_is_the_mean_over_the_windows_steps() -> None:
    # Learning rates 0 and 1 have the mean 0.5 and, with constant gradients, the same d̄ of 2.
    config = SlowMoConfig(sync_period=2, slow_momentum=0.5)
    states = by_hand(config, 4, lr=lambda step: [float(step % 2)])
    assert [float(state.momentum[0]) for state in states] == [0, 4, 4, 6]


def test_a_window_at_learning_rate_zero_leaves_the_slow_momentum_and_x() -> None:
    config = SlowMoConfig(sync_period=2, slow_momentum=0.5)
    states = by_hand(config, 6, lr=lambda step: [0.0 if 2 <= step < 4 else 0.5])
    assert [float(state.momentum[0]) for state in states] == [0, 4, 4, 4, 4, 6]
    assert [float(state.anchor[0]) for state in states] == [10, 8, 8, 8, 8, 5]


def test_a_displacement_at_learning_rate_zero_is_kept() -> None:
    class Stubborn(SGD):
        """Moves by the gradient whatever the learning rate is."""

        def step(self, x: Array, gradient: Array, lr: float) -> Array:
            return x - gradient

    config = SlowMoConfig(sync_period=2, slow_momentum=0.5, slow_lr=0.5)
    states = by_hand(config, 2, base=Stubborn(), lr=lambda step: [0.0])
    assert path(states, 0) == [9, 10 - 0.5 * 4]
    assert float(states[-1].momentum[0]) == 0


def test_the_warm_up_averages_after_each_step_and_opens_no_window() -> None:
    config = SlowMoConfig(sync_period=2, slow_momentum=0.5, slow_lr=2.0, warmup_steps=3)
    states = by_hand(config, 7)
    assert path(states, 0) == [9, 8, 7, 6.5, 3, 2.5, -3]
    assert path(states, 1) == [9, 8, 7, 5.5, 3, 1.5, -3]
    assert [state.windows[0] for state in states] == [0, 0, 0, 0, 1, 1, 2]
    assert [float(state.momentum[0]) for state in states] == [0, 0, 0, 0, 4, 4, 6]


def test_a_flush_ends_the_window_early_and_the_next_has_all_its_steps() -> None:
    # After one step d̄ is 1 and d̄/γ is 2; the window that follows has two steps again.
    config = SlowMoConfig(sync_period=2, slow_momentum=0.5)
    states = by_hand(config, 3, flush_after=[1])
    assert [float(state.momentum[0]) for state in states] == [2, 2, 5]
    assert [float(state.anchor[0]) for state in states] == [9, 9, 6.5]


def test_periods_that_are_a_function_by_hand() -> None:
    # Windows begin after 0, 1 and 3 steps, and have 1, 2 and 4; with constant gradients x falls.
    config = SlowMoConfig(sync_period=lambda step: 1 + step, slow_momentum=0)
    assert [state.windows[0] for state in by_hand(config, 7)] == [1, 1, 2, 2, 2, 2, 3]


def test_slow_settings_that_are_functions_by_hand() -> None:
    # d̄ / γ is 4 in each window of two steps: u = 4, then 0.5 · 4 + 4 = 6, and x falls by γ u, at
    # first halved.
    config = SlowMoConfig(
        sync_period=2,
        slow_momentum=lambda window: 0.5 * (window > 0),
        slow_lr=lambda window: [0.5, 1.0][window],
    )
    states = by_hand(config, 4)
    assert [float(state.momentum[0]) for state in states] == [0, 4, 4, 6]
    assert [float(state.anchor[0]) for state in states] == [10, 9, 9, 6]


def test_the_quadratic_rule_by_hand() -> None:
    # At γ = 0.5 and c = 1 a window would have 4 steps. The first has the base, 2; the second no
    # more than were before it, 2; the last ends with step 7.
    config = SlowMoConfig(sync_period=qsr(2, 1.0, total_steps=7))
    assert [state.windows[0] for state in by_hand(config, 7)] == [0, 1, 1, 2, 2, 2, 3]


def test_a_flush_where_a_window_has_just_ended_does_nothing() -> None:
    config = SlowMoConfig(sync_period=2, slow_momentum=0.5, warmup_steps=2)
    plain = by_hand(config, 6)
    flushed = by_hand(config, 6, flush_after=[1, 2, 4, 6])
    assert path(plain, 0) == path(flushed, 0)


def test_an_overlap_by_hand() -> None:
    # After step 2 the workers are at 9 and 7, and their mean, 8, lands after step 3, where each has
    # taken one step more. d̄ of the second window is 2 again: two steps each, from step 2 to 4.
    config = SlowMoConfig(sync_period=2, slow_momentum=0.5, overlap_steps=1)
    states = by_hand(config, 5)
    assert path(states, 0) == [9.5, 9, 8 - 0.5, 7, 5 - 0.5]
    assert path(states, 1) == [8.5, 7, 8 - 1.5, 5, 5 - 1.5]
    assert [float(state.anchor[0]) for state in states] == [10, 8, 8, 5, 5]
    assert [float(state.momentum[0]) for state in states] == [0, 4, 4, 6, 6]


def test_with_constant_gradients_an_overlap_leads_to_the_same_anchors() -> None:
    plain = by_hand(SlowMoConfig(sync_period=4, slow_momentum=0.5), 12)
    late = by_hand(SlowMoConfig(sync_period=4, slow_momentum=0.5, overlap_steps=3), 12)
    assert [state.anchor for state in plain] == [state.anchor for state in late]


def test_a_flush_lands_what_is_under_way_and_then_averages_the_steps_since() -> None:
    config = SlowMoConfig(sync_period=2, slow_momentum=0.0, overlap_steps=1)
    states = by_hand(config, 5, flush_after=[2, 5])
    # 8 lands in the first flush; the window launched after step 4 lands as step 5 ends, and with
    # no step missing the workers' mean is where two windows and one step have led.
    assert path(states, 0) == [9.5, 8, 7.5, 7, 5]
    assert [state.windows for state in states] == [[0], [1], [1], [2], [3]]


def test_fragments_by_hand() -> None:
    # Two parameters, each synchronised every two steps, the first after odd steps.
    config = SlowMoConfig(sync_period=2, slow_momentum=0.0, fragments=2)
    states = list(
        slowmo(
            [10.0, 10.0],
            lambda worker, step, x: [1.0 + 2 * worker] * 2,
            lambda step: [0.5, 0.5],
            SGD(),
            config,
            2,
            steps=4,
            fragment_of=[0, 1],
        )
    )
    assert [[float(x) for x in state.x[0]] for state in states] == [
        [9, 9.5],
        [8.5, 8],
        [7, 7.5],
        [6.5, 6],
    ]
    assert [state.windows for state in states] == [[1, 0], [1, 1], [2, 1], [2, 2]]


def test_fragments_of_equal_gradients_move_as_one_parameter_does() -> None:
    # Without momentum and noise a window's start is all the same.
    one = by_hand(SlowMoConfig(sync_period=3, slow_momentum=0.0), 9)
    three = by_hand(SlowMoConfig(sync_period=3, slow_momentum=0.0, fragments=3), 9)
    assert [float(state.anchor[0]) for state in three][::3] == [9, 6, 3]
    assert [float(state.anchor[0]) for state in one][2::3] == [7, 4, 1]


@pytest.mark.parametrize(
    ("buffers", "next_step"),
    [
        ("reset", (0.5, 1.5)),  # γ g alone
        ("maintain", (0.5 + 0.375, 1.5 + 1.125)),  # plus γ μ h, where h = 1.5 g after two steps
        ("average", (0.5 + 0.75, 1.5 + 0.75)),  # h averaged to 3
    ],
)
def test_what_a_window_finds_in_the_momentum_of_sgd(
    buffers: str, next_step: tuple[float, float]
) -> None:
    config = SlowMoConfig(sync_period=2, slow_momentum=0.0, buffers=buffers)
    states = by_hand(config, 3, base=SGD(momentum=0.5))
    start = float(states[1].anchor[0])
    assert (start - path(states, 0)[2], start - path(states, 1)[2]) == next_step


def test_a_reset_of_adam_resets_its_bias_correction() -> None:
    # Corrected for its bias, Adam's first step is γ sign(g); so is the first after a reset.
    config = SlowMoConfig(sync_period=2, slow_momentum=0.0, buffers="reset")
    states = by_hand(config, 3, base=Adam(eps=0.0))
    assert float(states[1].anchor[0]) - path(states, 0)[2] == pytest.approx(0.5, rel=1e-15)


@pytest.mark.parametrize(("warmup", "second_step"), [(1, 0.5), (2, 0.75)])
def test_between_warm_up_steps_nothing_is_reset_and_at_its_end_it_is(
    warmup: int, second_step: float
) -> None:
    # With g = 1 on both workers: γ g after a reset, γ (g + μ h) without one.
    config = SlowMoConfig(sync_period=9, slow_momentum=0.0, buffers="reset", warmup_steps=warmup)
    states = list(
        slowmo([10.0], lambda *_: [1.0], lambda step: [0.5], SGD(momentum=0.5), config, 2, steps=2)
    )
    assert path(states, 0)[0] - path(states, 0)[1] == second_step


def test_decoupled_decay_is_in_proportion_to_the_learning_rate_and_leaves_the_moments() -> None:
    x = np.array([2.0])
    adamw = Adam(eps=0.0, weight_decay=0.1, decoupled=True)
    assert adamw.step(x, np.array([3.0]), 0.5) == pytest.approx(2 - 0.5 * (1 + 0.1 * 2))
    assert adamw.buffers[0] == pytest.approx(0.1 * 3)


# ---- the optimizers that SlowMo reduces to -----------------------------------------------------


def assert_same_path(states: Iterator[State], expected: Iterator[list[Array]], worker: int) -> None:
    """Compare one worker after every step."""
    compared = 0
    for state, theirs in zip(states, expected, strict=True):
        assert_close(state.x[worker], theirs, EVERY_STEP)
        compared += 1
    assert compared == STEPS


def local_sgd(
    schedule: str,
    period: int,
    workers: int,
    worker: int,
    outer: Callable[[list[Array], list[Array]], list[Array]],
) -> Iterator[list[Array]]:
    """One worker's parameters; ``outer`` takes x_{t,0} and the mean to the next start."""
    start = list(X0)
    x = [list(X0) for _ in range(workers)]
    for step in range(STEPS):
        for i in range(workers):
            g = gradient(i, step, x[i])
            x[i] = [a - lr * b for a, b, lr in zip(x[i], g, SCHEDULES[schedule](step), strict=True)]
        if (step + 1) % period == 0:
            start = outer(start, [np.mean(of_all, axis=0) for of_all in zip(*x, strict=True)])
            x = [list(start) for _ in range(workers)]
        yield x[worker]


@pytest.mark.parametrize("schedule", ["constant", "decaying in and between windows", "to zero"])
@pytest.mark.parametrize("workers", WORKERS)
def test_with_one_step_and_sgd_inside_it_is_large_batch_heavy_ball(
    workers: int, schedule: str
) -> None:
    def heavy_ball() -> Iterator[list[Array]]:
        x, v = list(X0), [np.zeros_like(value) for value in X0]
        for step in range(STEPS):
            g = mean_gradient(workers, step, x)
            v = [0.6 * a + b for a, b in zip(v, g, strict=True)]
            x = [a - lr * b for a, b, lr in zip(x, v, SCHEDULES[schedule](step), strict=True)]
            yield x

    config = SlowMoConfig(sync_period=1, slow_momentum=0.6)
    assert_same_path(run(config, SGD(), schedule, workers), heavy_ball(), workers - 1)


@pytest.mark.parametrize("workers", WORKERS)
def test_heavy_ball_that_starts_at_learning_rate_zero_starts_late(workers: int) -> None:
    # Nothing moves at γ = 0, so the slow momentum cannot see the gradients that heavy ball sees.
    def heavy_ball() -> Iterator[list[Array]]:
        x, v = list(X0), [np.zeros_like(value) for value in X0]
        for step in range(STEPS):
            lrs = SCHEDULES["from zero"](step)
            if any(lrs):
                g = mean_gradient(workers, step, x)
                v = [0.6 * a + b for a, b in zip(v, g, strict=True)]
                x = [a - lr * b for a, b, lr in zip(x, v, lrs, strict=True)]
            yield x

    config = SlowMoConfig(sync_period=1, slow_momentum=0.6)
    assert_same_path(run(config, SGD(), "from zero", workers), heavy_ball(), workers - 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("workers", WORKERS)
def test_without_slow_momentum_it_is_local_sgd(workers: int, schedule: str) -> None:
    config = SlowMoConfig(sync_period=3, slow_momentum=0.0)
    expected = local_sgd(schedule, 3, workers, workers - 1, lambda start, mean: mean)
    assert_same_path(run(config, SGD(), schedule, workers), expected, workers - 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_with_one_worker_and_no_slow_momentum_it_is_lookahead(schedule: str) -> None:
    def lookahead() -> Iterator[list[Array]]:
        slow, fast = list(X0), list(X0)
        for step in range(STEPS):
            g = gradient(0, step, fast)
            fast = [a - lr * b for a, b, lr in zip(fast, g, SCHEDULES[schedule](step), strict=True)]
            if step % 3 == 2:
                slow = [a + 0.5 * (b - a) for a, b in zip(slow, fast, strict=True)]
                fast = slow
            yield fast

    config = SlowMoConfig(sync_period=3, slow_lr=0.5, slow_momentum=0.0)
    assert_same_path(run(config, SGD(), schedule, 1), lookahead(), 0)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("workers", WORKERS)
def test_at_a_constant_learning_rate_it_is_bmuf(workers: int, nesterov: bool) -> None:
    """K. Chen, Q. Huo, "Scalable training of deep learning machines by incremental block training
    with intra-block parallel optimization and blockwise model-update filtering", ICASSP 2016."""
    delta = [np.zeros_like(value) for value in X0]

    def filtered(start: list[Array], mean: list[Array]) -> list[Array]:
        block = [b - a for a, b in zip(start, mean, strict=True)]  # G
        delta[:] = [0.6 * a + 0.8 * b for a, b in zip(delta, block, strict=True)]  # η Δ + ζ G
        ahead = [0.8 * b + 0.6 * a for a, b in zip(delta, block, strict=True)]
        return [a + b for a, b in zip(start, ahead if nesterov else delta, strict=True)]

    config = SlowMoConfig(sync_period=3, slow_lr=0.8, slow_momentum=0.6, nesterov=nesterov)
    expected = local_sgd("constant", 3, workers, workers - 1, filtered)
    assert_same_path(run(config, SGD(), "constant", workers), expected, workers - 1)


@pytest.mark.parametrize("workers", WORKERS)
def test_with_nesterov_and_adamw_inside_it_is_diloco(workers: int) -> None:
    """A. Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models",
    arXiv 2311.08105, Algorithm 1, with the settings of its section 3."""

    def diloco() -> Iterator[list[Array]]:
        start, outer = list(X0), [np.zeros_like(value) for value in X0]
        x = [list(X0) for _ in range(workers)]
        m, v = ([[np.zeros_like(a) for a in X0] for _ in range(workers)] for _ in range(2))
        for step in range(STEPS):
            for i, j in itertools.product(range(workers), range(2)):
                g, lr = gradient(i, step, x[i])[j], SCHEDULES["constant"](step)[j]
                m[i][j] = 0.9 * m[i][j] + 0.1 * g
                v[i][j] = 0.999 * v[i][j] + 0.001 * g**2
                ratio = (1 - 0.999 ** (step + 1)) ** 0.5 / (1 - 0.9 ** (step + 1))
                eps = 1e-8 * (1 - 0.999 ** (step + 1)) ** 0.5
                x[i][j] = x[i][j] * (1 - lr * 0.1) - lr * ratio * m[i][j] / (v[i][j] ** 0.5 + eps)
            if step % 3 == 2:
                for j in range(2):
                    d = start[j] - sum(x[i][j] for i in range(workers)) / workers
                    outer[j] = 0.9 * outer[j] + d
                    start[j] = start[j] - 0.7 * (d + 0.9 * outer[j])
                x = [list(start) for _ in range(workers)]
            yield x[-1]

    config = SlowMoConfig(sync_period=3, slow_lr=0.7, slow_momentum=0.9, nesterov=True)
    adamw = Adam(weight_decay=0.1, decoupled=True)
    assert_same_path(run(config, adamw, "constant", workers), diloco(), workers - 1)


@pytest.mark.parametrize("workers", WORKERS)
def test_identical_workers_train_as_one(workers: int) -> None:
    config = SlowMoConfig(sync_period=3, buffers="average", warmup_steps=2)
    base = Adam(weight_decay=0.1)
    name = "decaying in and between windows"
    many = run(config, base, name, workers, gradient=lambda worker, step, x: gradient(0, step, x))
    alone = (state.x[0] for state in run(config, base, name, 1))
    assert_same_path(many, alone, workers - 1)


def test_a_caller_that_changes_a_state_does_not_change_the_run() -> None:
    config = SlowMoConfig(sync_period=2)
    touched = []
    for state in run(config, SGD(momentum=0.9), "constant", 2):
        touched.append(state.x[1][0].copy())
        for array in (*state.x[0], *state.x[1], *state.anchor, *state.momentum):
            array.fill(np.nan)
    untouched = [state.x[1][0] for state in run(config, SGD(momentum=0.9), "constant", 2)]
    assert_close(touched, untouched, 0)
