"""The adapter against the NumPy reference: every worker, after every step, local ones included."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from courses import CHANGING, CLIPPED, COURSES, PACES, Course, changing_config
from problem import SCHEDULES, STEPS, X0, gradient
from torch_problem import assert_close, groups, parameters, take_step

import slowmo_hvd.torch as hvd
from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.reference import SGD, Adam, Base, slowmo

pytestmark = pytest.mark.ranks(1, 2, 3, 4)

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


class Inner(NamedTuple):
    torch: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    numpy: Base


INNER = {
    "plain SGD": Inner(lambda groups: torch.optim.SGD(groups, lr=0.1), SGD()),
    "SGD": Inner(
        lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.1),
        SGD(momentum=0.9, weight_decay=0.1),
    ),
    "Nesterov SGD": Inner(
        lambda groups: torch.optim.SGD(
            groups, lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.01
        ),
        SGD(momentum=0.8, nesterov=True, weight_decay=0.01),
    ),
    "Adam": Inner(
        lambda groups: torch.optim.Adam(groups, betas=(0.8, 0.95), weight_decay=0.1),
        Adam(betas=(0.8, 0.95), weight_decay=0.1),
    ),
    "AdamW": Inner(
        lambda groups: torch.optim.AdamW(groups, betas=(0.8, 0.95), weight_decay=0.1),
        Adam(betas=(0.8, 0.95), weight_decay=0.1, decoupled=True),
    ),
}
BUFFERS = ("maintain", "reset", "average")


def check(config: SlowMoConfig, inner: Inner, course: Course, dtype: torch.dtype) -> None:
    params = parameters(dtype)
    optimizer = hvd.DistributedOptimizer(inner.torch(groups(params)), **vars(config))
    schedule = SCHEDULES[course.schedule]
    reference = slowmo(
        X0,
        gradient,
        schedule,
        inner.numpy,
        config,
        hvd.size(),
        steps=STEPS,
        flush_after=course.flush_after,
        fragment_of=[0, config.fragments - 1],
    )
    for step, expected in enumerate(reference):
        take_step(optimizer, schedule(step), lambda x, step=step: gradient(hvd.rank(), step, x))
        if step + 1 in course.flush_after:
            optimizer.flush()
        assert_close(params, expected.x[hvd.rank()], TOLERANCE[dtype])
        slow = optimizer.state_dict()["slowmo"]
        assert_close(list(slow["anchor"].values()), expected.anchor, TOLERANCE[dtype])
        if config.has_momentum:
            momentum = list(slow["momentum"].values())
            assert_close(momentum, expected.momentum, 30 * TOLERANCE[dtype])  # d̄/γ loses digits
        assert (slow["step"], slow["window"]) == (expected.step, expected.windows)


# Inner optimizer, buffers, course and outer Nesterov: of all combinations, so many that every pair
# of settings occurs, but for a fifth of those of inner optimizer and course.
PLANS = [
    (list(INNER)[(i + j) % len(INNER)], buffers, course, (i + j) % 2 == 1)
    for (i, buffers), (j, course) in itertools.product(enumerate(BUFFERS), enumerate(COURSES))
]


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
    check(config, INNER[name], COURSES[course], torch.float64)


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
    check(config, INNER[name], COURSES[course], torch.float32)


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
    check(config, INNER[name], COURSES[course], torch.float64)


@pytest.mark.pairwise
@pytest.mark.parametrize("changing", [*CHANGING, *CLIPPED])
@pytest.mark.parametrize("course", ["decay", "to zero", "warm-up and flushes"])
def test_matches_the_reference_where_settings_change_from_window_to_window(
    course: str, changing: str
) -> None:
    check(changing_config(course, changing), INNER["SGD"], COURSES[course], torch.float64)


def test_matches_the_reference_with_the_averaged_buffers_of_fragments() -> None:
    config = SlowMoConfig(sync_period=4, slow_momentum=0.6, buffers="average", fragments=2)
    check(config, INNER["AdamW"], COURSES["decay"], torch.float64)


@pytest.mark.parametrize("course", ["to zero", "warm-up and flushes"])
def test_matches_the_reference_without_slow_momentum(course: str) -> None:
    config = SlowMoConfig(
        sync_period=COURSES[course].sync_period,
        slow_lr=0.5,
        slow_momentum=0.0,
        warmup_steps=COURSES[course].warmup_steps,
    )
    check(config, INNER["SGD"], COURSES[course], torch.float64)


@pytest.mark.parametrize("buffers", ["reset", "maintain", "average"])
def test_restarting_adam_at_the_end_of_a_window_takes_its_step_count_back(buffers: str) -> None:
    params = parameters()
    inner = torch.optim.Adam(groups(params))
    optimizer = hvd.DistributedOptimizer(inner, sync_period=2, buffers=buffers)
    counts = []
    for step in range(5):
        take_step(optimizer, (0.1, 0.1), lambda x, step=step: gradient(hvd.rank(), step, x))
        counts.append(
            [int(inner.state[param]["step"]) if param in inner.state else 0 for param in params]
        )
    expected = [1, 0, 1, 0, 1] if buffers == "reset" else [1, 2, 3, 4, 5]
    assert counts == [[count] * 2 for count in expected]
