"""What the shipped schedules give, and how they are named and saved."""

from functools import partial
from typing import Any

import pytest

from slowmo_hvd import schedules
from slowmo_hvd.core.schedules import QSR, Constant, Linear, describe, from_config, to_config


def test_a_constant_is_its_value() -> None:
    assert [schedules.constant(7)(step) for step in (0, 100)] == [7, 7]


def test_a_line_goes_from_first_to_last_and_stays_there() -> None:
    warm_up = schedules.linear(0.0, 0.8, 4)
    assert [warm_up(t) for t in range(6)] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 0.8])
    assert [schedules.linear(4, 8, 8)(step) for step in (0, 1, 2, 3, 8, 99)] == [4, 4, 5, 6, 8, 8]


def test_the_quadratic_rule_by_hand() -> None:
    rule = schedules.qsr(4, 0.2)
    # (0.2 / 0.1)² = 4, (0.2 / 0.04)² = 25, (0.2 / 0.03)² = 44.4, and 4 is the least.
    gammas = (0.4, 0.1, 0.04, 0.03, -0.04)
    assert [rule.period(1000, gamma, 1) for gamma in gammas] == [4, 4, 25, 44, 25]


def test_the_first_window_of_the_rule_has_the_base() -> None:
    assert schedules.qsr(4, 0.2).period(0, 0.0, 1) == 4


def test_the_rules_last_window_ends_with_the_training() -> None:
    rule = schedules.qsr(4, 0.2, total_steps=100)
    assert [rule.period(step, 0.02, 1) for step in (60, 93, 99)] == [40, 7, 1]
    assert rule.period(99, 0.02, least=3) == 3  # with an overlap of two steps
    assert rule.period(100, 0.02, 1) == 100  # trained longer than was said: as if nothing was


def test_a_learning_rate_near_0_makes_no_window_longer_than_the_training_so_far() -> None:
    rule = schedules.qsr(4, 0.2)
    assert [rule.period(step, 0.001, 1) for step in (0, 4, 8, 16, 32)] == [4, 4, 8, 16, 32]


def test_next_to_no_learning_rate_is_no_overflow() -> None:
    assert schedules.qsr(4, 0.2).period(10**9, 1e-300, 1) == 10**9


def test_the_rules_power() -> None:
    assert schedules.qsr(1, 0.2, power=3).period(1000, 0.1, 1) == 8


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (partial(schedules.qsr, 0, 0.2), ValueError, "base must be an int >= 1, got 0"),
        (partial(schedules.qsr, 4, 0.0), ValueError, "coefficient must be a finite number > 0"),
        (partial(schedules.qsr, 4, 0.2, power=-1), ValueError, "power must be a finite number > 0"),
        (partial(schedules.qsr, 4, 0.2, total_steps=0), ValueError, "total_steps must be an int"),
        (partial(schedules.linear, 1, 2, 0), ValueError, "length must be an int >= 1"),
        (partial(schedules.linear, "1", 2, 3), TypeError, "first must be a finite number"),
        (partial(schedules.constant, None), TypeError, "value must be a finite number"),
    ],
)
def test_what_is_wrong_with_an_argument_is_said(make: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def of_the_users(step: int) -> int:
    return 3


class Counting:
    """A callable of the user's that is an object."""

    def __call__(self, step: int) -> int:
        return step


def test_a_setting_is_named_alike_on_every_rank() -> None:
    assert describe(12) == 12
    assert describe(Linear(1, 2, 3)) == "Linear(first=1, last=2, length=3)"
    assert describe(of_the_users) == f"{__name__}.of_the_users"
    assert describe(Counting()) == f"{__name__}.Counting"


@pytest.mark.parametrize("schedule", [QSR(4, 0.2, 9), Constant(3), Linear(0.0, 1.0, 2), 12, "text"])
def test_a_schedule_comes_back_from_its_builtins(schedule: Any) -> None:
    assert from_config(to_config(schedule)) == schedule


def test_the_rule_waits_until_the_learning_rate_has_risen() -> None:
    rule = schedules.qsr(4, 0.2, warmup_steps=200)
    assert [rule.period(step, 0.02, 1) for step in (0, 100, 199)] == [4, 4, 4]
    assert rule.period(200, 0.02, 1) == 100
