"""The adapter against the NumPy reference: every worker, after every step, local ones included."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from courses import CHANGING, CLIPPED, COURSES, PACES, Course, changing_config
from keras_models import slow_state
from keras_optimizers import of_keras
from problem import SCHEDULES, STEPS, X0, Array, assert_close, gradient

import slowmo_hvd.tensorflow as hvd
from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.reference import Adam, Base, slowmo

pytestmark = pytest.mark.ranks(1, 2, 3, 4)

TOLERANCE = {"float64": 1e-12, "float32": 1e-6}


@dataclasses.dataclass
class KerasSGD:
    """SGD as Keras has it: the learning rate is in the velocity, and the decay is not."""

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    buffers: list[Array] = dataclasses.field(default_factory=list)

    def step(self, x: Array, gradient: Array, lr: float) -> Array:
        x = x - lr * self.weight_decay * x
        if not self.momentum:
            return x - lr * gradient
        h = self.buffers[0] if self.buffers else np.zeros_like(x)
        h = self.momentum * h - lr * gradient
        self.buffers = [h]
        return x + (self.momentum * h - lr * gradient if self.nesterov else h)

    def reset(self) -> None:
        self.buffers = []


class Inner(NamedTuple):
    keras: Callable[[], keras.optimizers.Optimizer]
    numpy: Base


# Numbers that float32 has, since that is what Keras makes of them. No ε: Keras puts it elsewhere.
INNER = {
    "plain SGD": Inner(
        lambda: keras.optimizers.SGD(weight_decay=0.0625), KerasSGD(weight_decay=0.0625)
    ),
    "SGD": Inner(lambda: keras.optimizers.SGD(momentum=0.875), KerasSGD(momentum=0.875)),
    "Nesterov SGD": Inner(
        lambda: keras.optimizers.SGD(momentum=0.75, nesterov=True, weight_decay=0.0625),
        KerasSGD(momentum=0.75, nesterov=True, weight_decay=0.0625),
    ),
    "Adam": Inner(
        lambda: keras.optimizers.Adam(beta_1=0.75, beta_2=0.9375, epsilon=0.0),
        Adam(betas=(0.75, 0.9375), eps=0.0),
    ),
    "AdamW": Inner(
        lambda: keras.optimizers.AdamW(
            beta_1=0.75, beta_2=0.9375, epsilon=0.0, weight_decay=0.0625
        ),
        Adam(betas=(0.75, 0.9375), eps=0.0, weight_decay=0.0625, decoupled=True),
    ),
}
BUFFERS = ("maintain", "reset", "average")


def learning_rates(schedule: str) -> Callable[[int], tuple[float, ...]]:
    """Keras keeps learning rates in float32."""
    return lambda step: tuple(float(np.float32(lr)) for lr in SCHEDULES[schedule](step))


def values(optimizer: hvd.DistributedOptimizer, name: str) -> list[Array]:
    """The optimizer's variables whose name ends so, in order."""
    return [v.numpy() for v in optimizer.variables if v.name.endswith(name)]


def take_step(
    optimizer: hvd.DistributedOptimizer,
    leaves: list[keras.optimizers.Optimizer],
    variables: list[tf.Variable],
    lrs: tuple[float, ...],
    step: int,
) -> None:
    for leaf, lr in zip(leaves, lrs, strict=True):
        leaf.learning_rate = lr
    arrays = [variable.numpy().astype(float) for variable in variables]
    gradients = [
        tf.constant(value, variable.dtype)
        for value, variable in zip(gradient(hvd.rank(), step, arrays), variables, strict=True)
    ]
    optimizer.apply_gradients(zip(gradients, variables, strict=True))


def check(config: SlowMoConfig, inner: Inner, course: Course, dtype: str) -> None:
    variables = [tf.Variable(value, dtype=dtype) for value in X0]
    leaves = [inner.keras() for _ in X0]  # one for each variable, by its dimensions
    both = of_keras("MultiOptimizer")(lambda variable: leaves[len(variable.shape) - 1])
    optimizer = hvd.DistributedOptimizer(both, **vars(config))
    lrs = learning_rates(course.schedule)
    reference = slowmo(
        X0,
        gradient,
        lrs,
        inner.numpy,
        config,
        hvd.size(),
        steps=STEPS,
        flush_after=course.flush_after,
        fragment_of=[0, config.fragments - 1],
    )
    for step, expected in enumerate(reference):
        take_step(optimizer, leaves, variables, lrs(step), step)
        if step + 1 in course.flush_after:
            optimizer.flush()
        ours = [variable.numpy() for variable in variables]
        assert_close(ours, expected.x[hvd.rank()], TOLERANCE[dtype])
        assert_close(slow_state(optimizer, "anchor"), expected.anchor, TOLERANCE[dtype])
        if config.has_momentum:
            momentum = slow_state(optimizer, "momentum")
            assert_close(momentum, expected.momentum, 30 * TOLERANCE[dtype])  # d̄/γ loses digits
        assert values(optimizer, "step") == [expected.step]
        assert [list(windows) for windows in values(optimizer, "window")] == [expected.windows]


# Inner optimizer, buffers, course and outer Nesterov: of all combinations, so many that every pair
# of settings occurs, but for a fifth of those of inner optimizer and course.
PLANS = [
    (list(INNER)[(i + j) % len(INNER)], buffers, course, (i + j) % 2 == 1)
    for (i, buffers), (j, course) in itertools.product(enumerate(BUFFERS), enumerate(COURSES))
]


@pytest.mark.pairwise
@pytest.mark.parametrize(("name", "buffers", "course", "nesterov"), PLANS)
def test_matches_the_reference(name: str, buffers: str, course: str, nesterov: bool) -> None:
    config = SlowMoConfig(
        sync_period=COURSES[course].sync_period,
        slow_lr=0.7 if nesterov else 0.9,
        slow_momentum=0.9 if nesterov else 0.6,
        nesterov=nesterov,
        buffers=buffers,
        warmup_steps=COURSES[course].warmup_steps,
    )
    check(config, INNER[name], COURSES[course], "float64")


@pytest.mark.parametrize(("name", "buffers", "course", "nesterov"), PLANS[::5])
def test_matches_the_reference_in_single_precision(
    name: str, buffers: str, course: str, nesterov: bool
) -> None:
    config = SlowMoConfig(
        sync_period=COURSES[course].sync_period,
        slow_momentum=0.6,
        nesterov=nesterov,
        buffers=buffers,
        warmup_steps=COURSES[course].warmup_steps,
    )
    check(config, INNER[name], COURSES[course], "float32")


@pytest.mark.pairwise
@pytest.mark.parametrize("pace", PACES, ids=str)
@pytest.mark.parametrize("course", ["decay", "to zero", "warm-up and flushes"])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_matches_the_reference_with_an_overlap_and_fragments(
    name: str, course: str, pace: dict[str, int]
) -> None:
    config = SlowMoConfig(
        sync_period=COURSES[course].sync_period,
        slow_momentum=0.6,
        nesterov=name == "SGD",
        warmup_steps=COURSES[course].warmup_steps,
        **pace,
    )
    check(config, INNER[name], COURSES[course], "float64")


@pytest.mark.pairwise
@pytest.mark.parametrize("changing", [*CHANGING, *CLIPPED])
@pytest.mark.parametrize("course", ["decay", "to zero", "warm-up and flushes"])
def test_matches_the_reference_where_settings_change_from_window_to_window(
    course: str, changing: str
) -> None:
    check(changing_config(course, changing), INNER["SGD"], COURSES[course], "float64")


def test_matches_the_reference_with_the_averaged_buffers_of_fragments() -> None:
    config = SlowMoConfig(sync_period=4, slow_momentum=0.6, buffers="average", fragments=2)
    check(config, INNER["AdamW"], COURSES["decay"], "float64")


@pytest.mark.parametrize("course", ["to zero", "warm-up and flushes"])
def test_matches_the_reference_without_slow_momentum(course: str) -> None:
    config = SlowMoConfig(
        sync_period=COURSES[course].sync_period,
        slow_lr=0.5,
        slow_momentum=0.0,
        warmup_steps=COURSES[course].warmup_steps,
    )
    check(config, INNER["SGD"], COURSES[course], "float64")
