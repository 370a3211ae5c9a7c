"""The adapter on real ranks against the optimizers that SlowMo reduces to.

The other side is plain Keras, or a few lines of NumPy: each rank trains all workers by itself.
"""

from collections.abc import Callable, Iterator

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_models import number, slow_state, step_with
from problem import STEPS, X0, Array, assert_close, gradient, mean_gradient

import slowmo_hvd.tensorflow as hvd

Make = Callable[[], keras.optimizers.Optimizer]
Gradient = Callable[[int, int, list[Array]], list[Array]]
Outer = Callable[[list[Array], list[Array]], list[Array]]

RANKS = pytest.mark.ranks(1, 2, 4)  # and the reference with 3 too
TOLERANCE = 1e-12
PERIOD = 3
WHOLE = (STEPS // PERIOD) * PERIOD  # steps of whole windows

# Exact in float32, since that is what Keras keeps learning rates in.
SCHEDULES: dict[str, Callable[[int], float]] = {
    "constant": lambda step: 0.125,
    "decaying in and between windows": lambda step: (20 - step) / 128,
    "from zero": lambda step: max(step - 3, 0) / 64,  # the first window is all zeros
    "to zero": lambda step: max(8 - step, 0) / 64,
}


def plain() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.125, weight_decay=0.0625)


def heavy() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.125, momentum=0.9, nesterov=True, weight_decay=0.0625)


def adamw() -> keras.optimizers.Optimizer:
    return keras.optimizers.AdamW(0.125, weight_decay=0.0625)


def start() -> list[tf.Variable]:
    return [tf.Variable(value) for value in X0]


def arrays(variables: list[tf.Variable]) -> list[Array]:
    return [variable.numpy().copy() for variable in variables]


def take_step(
    optimizer: keras.optimizers.Optimizer,
    variables: list[tf.Variable],
    lr: float,
    worker: int,
    step: int,
    gradient_of: Gradient = gradient,
) -> None:
    optimizer.learning_rate = lr
    gradients = gradient_of(worker, step, arrays(variables))
    optimizer.apply_gradients(zip(map(tf.constant, gradients), variables, strict=True))


def assert_trains_like(
    expected: Iterator[list[Array]],
    make: Make,
    schedule: str,
    gradient_of: Gradient = gradient,
    **settings: object,
) -> None:
    """Compare this rank's variables with the expected ones after every step."""
    variables = start()
    optimizer = hvd.DistributedOptimizer(make(), **settings)
    for step, theirs in zip(range(STEPS), expected, strict=True):
        lr = SCHEDULES[schedule](step)
        take_step(optimizer, variables, lr, hvd.rank(), step, gradient_of)
        assert_close(arrays(variables), theirs, TOLERANCE)
    assert optimizer.sync_stats.syncs == STEPS // settings["sync_period"] >= 5


def train_apart(
    make: Make,
    schedule: str,
    outer: Outer,
    gradient_of: Gradient = gradient,
    *,
    workers: int,
    reset: bool = False,
) -> Iterator[list[Array]]:
    """This rank's weights: PERIOD local steps; ``outer`` takes start and mean to a new start."""
    anchor = list(X0)
    models, inners = [start() for _ in range(workers)], [make() for _ in range(workers)]
    for step in range(STEPS):
        for worker, (variables, inner) in enumerate(zip(models, inners, strict=True)):
            take_step(inner, variables, SCHEDULES[schedule](step), worker, step, gradient_of)
        if (step + 1) % PERIOD == 0:
            means = [np.mean(of_all, axis=0) for of_all in zip(*map(arrays, models), strict=True)]
            anchor = outer(anchor, means)
            for variables in models:
                for variable, value in zip(variables, anchor, strict=True):
                    variable.assign(value)
            if reset:
                inners = [make() for _ in range(workers)]
        yield arrays(models[hvd.rank() % workers])


def sgd_on_displacements(lr: float, momentum: float, *, nesterov: bool) -> Outer:
    """SGD with momentum, the displacement being the gradient."""
    velocities = [np.zeros_like(value) for value in X0]

    def step(before: list[Array], after: list[Array]) -> list[Array]:
        moved = []
        for index, (x, mean) in enumerate(zip(before, after, strict=True)):
            g = x - mean
            velocities[index] = momentum * velocities[index] + g
            d = g + momentum * velocities[index] if nesterov else velocities[index]
            moved.append(x - lr * d)
        return moved

    return step


@RANKS
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_with_one_step_and_sgd_inside_it_is_large_batch_heavy_ball(schedule: str) -> None:
    """Momentum over gradients, as torch.optim.SGD has it: Keras' takes the learning rate in."""

    def large_batch() -> Iterator[list[Array]]:
        x, velocity = list(X0), [np.zeros_like(value) for value in X0]
        for step in range(STEPS):
            lr = SCHEDULES[schedule](step)
            if lr:  # at γ = 0 nothing moves, so the slow momentum sees no gradient
                mean = mean_gradient(hvd.size(), step, x)
                velocity = [
                    0.6 * v + g + 0.0625 * value
                    for v, g, value in zip(velocity, mean, x, strict=True)
                ]
                # Keras decays the weights before it takes their gradient's step.
                x = [value - lr * v for value, v in zip(x, velocity, strict=True)]
            yield x

    assert_trains_like(large_batch(), plain, schedule, sync_period=1, slow_momentum=0.6)


@RANKS
@pytest.mark.parametrize(
    ("buffers", "schedule"),
    [("reset", "constant"), *(("maintain", schedule) for schedule in SCHEDULES)],
)
def test_without_slow_momentum_it_is_local_sgd(buffers: str, schedule: str) -> None:
    expected = train_apart(
        heavy, schedule, lambda start, mean: mean, workers=hvd.size(), reset=buffers == "reset"
    )
    assert_trains_like(
        expected, heavy, schedule, sync_period=PERIOD, slow_momentum=0.0, buffers=buffers
    )


@RANKS
@pytest.mark.parametrize("schedule", ["decaying in and between windows", "from zero"])
def test_identical_workers_without_slow_momentum_are_one_lookahead(schedule: str) -> None:
    """M. R. Zhang, J. Lucas, G. Hinton, J. Ba, "Lookahead Optimizer: k steps forward, 1 step
    back", NeurIPS 2019, arXiv 1907.08610, Algorithm 1. Every worker sees the same gradients."""

    def same(worker: int, step: int, x: list[Array]) -> list[Array]:
        return gradient(0, step, x)

    def halfway(slow: list[Array], fast: list[Array]) -> list[Array]:
        return [phi + 0.5 * (theta - phi) for phi, theta in zip(slow, fast, strict=True)]

    expected = train_apart(adamw, schedule, halfway, same, workers=1)
    assert_trains_like(
        expected, adamw, schedule, same, sync_period=PERIOD, slow_momentum=0.0, slow_lr=0.5
    )


@RANKS
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("make", [heavy, adamw])
def test_at_a_constant_learning_rate_it_is_sgd_on_displacements(make: Make, nesterov: bool) -> None:
    """With SGD inside and without Nesterov this is BMUF (Chen and Huo, ICASSP 2016); with AdamW
    inside and Nesterov DiLoCo (arXiv 2311.08105, Algorithm 1)."""
    outer = sgd_on_displacements(0.7, 0.9, nesterov=nesterov)
    expected = train_apart(make, "constant", outer, workers=hvd.size())
    assert_trains_like(
        expected,
        make,
        "constant",
        sync_period=PERIOD,
        slow_lr=0.7,
        slow_momentum=0.9,
        nesterov=nesterov,
        buffers="maintain",
    )


# ---- by hand -------------------------------------------------------------------------------


@pytest.mark.ranks(2)
def test_two_workers_and_one_weight_by_hand() -> None:
    """γ = 1/2, τ = 2, β = 1/2, α = 1; rank 0 sees gradients of 1, rank 1 of 3."""
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(0.5), sync_period=2, slow_momentum=0.5
    )
    seen = []
    for _ in range(5):
        step_with(optimizer, (1.0 + 2 * hvd.rank(), weight))
        seen.append(weight.numpy().item())
    # d̄ = (1 + 3) / 2 = 2, u = 2 / γ = 4, x = -γ u = -2; then u = 0.5·4 + 4 = 6, x = -2 - 3.
    own = (-0.5, -1.5)[hvd.rank()]
    assert seen == [own, -2.0, -2.0 + own, -5.0, -5.0 + own]
    last = optimizer.sync_stats.last
    assert last is not None
    assert (last.displacement_norm, last.drift) == (2.0, 1.0)
    assert (last.step, last.window, last.workers, last.learning_rates) == (4, 1, 2, (0.5,))
    assert last.bytes == 4 + 8 * 7  # the weight; the header, ‖d‖²


@RANKS
def test_no_sync_at_step_0_and_the_first_window_has_exactly_its_steps() -> None:
    variables, seen = start(), []
    optimizer = hvd.DistributedOptimizer(plain(), sync_period=PERIOD)
    optimizer.register_sync_hook(lambda record: seen.append((record.step, record.window)))
    optimizer.flush()
    optimizer.build(variables)
    optimizer.flush()
    for step in range(WHOLE):
        take_step(optimizer, variables, 0.125, hvd.rank(), step)
        assert optimizer.sync_stats.syncs == (step + 1) // PERIOD
    assert seen == [(PERIOD * (t + 1), t) for t in range(WHOLE // PERIOD)]


@RANKS
def test_the_anchor_is_taken_before_the_first_step_and_moves_only_at_syncs() -> None:
    variables = start()
    optimizer = hvd.DistributedOptimizer(plain(), sync_period=PERIOD)
    for step in range(PERIOD):
        take_step(optimizer, variables, 0.125, hvd.rank(), step)
        anchors = slow_state(optimizer, "anchor")
        if step < PERIOD - 1:
            assert_close(anchors, X0, 0)
            assert np.abs(variables[0].numpy() - X0[0]).max() > 1e-2
        else:
            assert_close(anchors, arrays(variables), 0)


@RANKS
@pytest.mark.parametrize(
    ("dtype", "nesterov"), [("float64", False), ("float32", True), ("bfloat16", False)]
)
def test_a_learning_rate_of_zero_divides_nothing(dtype: str, nesterov: bool) -> None:
    variables = [tf.Variable(tf.cast(value, dtype)) for value in X0]
    inner = keras.optimizers.SGD(0.0, momentum=0.5)
    optimizer = hvd.DistributedOptimizer(inner, sync_period=2, nesterov=nesterov)
    for _ in range(4):
        ones = [tf.ones_like(variable) for variable in variables]
        optimizer.apply_gradients(zip(ones, variables, strict=True))
    assert_close(arrays(variables), X0, 0)
    slow = slow_state(optimizer, "momentum")
    assert len(slow) == 2
    assert not any(momentum.any() for momentum in slow)


ULP = 2.0**-7  # of bfloat16 between 1 and 2


@pytest.mark.ranks(3)
def test_the_slow_state_keeps_what_is_too_small_for_bfloat16_to_show() -> None:
    # In each window one rank of three steps up by one ulp, so the mean moves by a third. The
    # float32 anchor is 1/3, 2/3, 3/3 ... ulp above 1, and the variable is that, rounded; averaged
    # in bfloat16 it would stay at 1 for ever.
    weight = tf.Variable(tf.ones(4, tf.bfloat16))
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(ULP), sync_period=1, slow_momentum=0.0
    )
    seen = []
    for step in range(8):
        step_with(optimizer, (-1.0 if hvd.rank() == 1 else 0.0, weight))
        seen.append([(float(value) - 1) / ULP for value in weight.numpy()])
        (anchor,) = slow_state(optimizer, "anchor")
        assert anchor.dtype == np.float32
        assert anchor.tolist() == pytest.approx([1 + (step + 1) / 3 * ULP] * 4, abs=1e-3 * ULP)
    assert seen == [[ulps] * 4 for ulps in (0, 1, 1, 1, 2, 2, 2, 3)]
