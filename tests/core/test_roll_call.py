"""Reading the marks that all workers leave in a sync, on paper."""

import math

import pytest

from slowmo_hvd.core.roll_call import (
    LARGEST_SQUARE,
    call_roll,
    exclusion,
    is_sound,
    mark,
    mark_of_change,
)


def test_a_worker_marks_its_step_and_a_broken_one_its_negative() -> None:
    assert (mark(12, sound=True), mark(12, sound=False)) == (12, -12)


def test_those_who_joined_are_absent_and_those_who_broke_are_present() -> None:
    roll = call_roll([6.0, 0.0, -6.0, 6.0], [0, 2, 4, 6], "exclude")
    assert (roll.present, roll.contributors, roll.excluded) == (3, 2, (4,))


def test_all_may_change_their_parameters_after_one_step() -> None:
    roll = call_roll([mark_of_change(6), 0.0, mark_of_change(6)], [0, 1, 2], "raise")
    assert (roll.present, roll.excluded) == (2, ())


@pytest.mark.parametrize("theirs", [6.0, -6.0, 9.0])
def test_a_change_of_the_parameters_on_some_ranks_is_told_apart_from_a_sync(theirs: float) -> None:
    with pytest.raises(
        RuntimeError, match=r"ranks 0, 5 changed which .* and rank 3 did not: freeze"
    ):
        call_roll([mark_of_change(6), theirs, mark_of_change(6)], [0, 3, 5], "exclude")


@pytest.mark.parametrize("marks", [[6.0, 5.0, 6.0], [6.0, -5.0, 0.0], [-6.0, -5.0, -6.0]])
def test_workers_in_different_syncs_are_told_before_all_else(marks: list[float]) -> None:
    with pytest.raises(
        RuntimeError, match="different syncs: rank 0 after 6 steps, rank 3 after 5;"
    ):
        call_roll(marks, [0, 3, 5], "exclude")


@pytest.mark.parametrize("on_nonfinite", ["exclude", "raise"])
@pytest.mark.parametrize("marks", [[-4.0], [-4.0, -4.0], [-4.0, 0.0]])
def test_without_a_sound_worker_it_always_raises(marks: list[float], on_nonfinite: str) -> None:
    ranks = list(range(len(marks)))
    with pytest.raises(FloatingPointError, match="after 4 steps the weights of no worker are"):
        call_roll(marks, ranks, on_nonfinite)


def test_raise_names_the_broken_ranks() -> None:
    with pytest.raises(FloatingPointError, match=r"the weights of ranks 1, 7 are not finite"):
        call_roll([4.0, -4.0, -4.0], [0, 1, 7], "raise")
    assert call_roll([4.0, 4.0, 0.0], [0, 1, 7], "raise").excluded == ()


def test_the_warning_names_step_and_ranks() -> None:
    assert exclusion((3,), 24).startswith("after 24 steps the weights of rank 3 are not finite")
    assert "of ranks 3, 5 are" in exclusion((3, 5), 24)


@pytest.mark.parametrize(
    ("squares", "rates", "sound"),
    [
        (0.0, [], True),
        (LARGEST_SQUARE, [0.1, 0.0], True),
        (LARGEST_SQUARE * 1.0001, [0.1], False),
        (math.inf, [0.1], False),
        (math.nan, [0.1], False),
        (1.0, [0.1, math.nan], False),
        (1.0, [math.inf], False),
    ],
)
def test_sound_is_what_cannot_spoil_a_sum(squares: float, rates: list[float], sound: bool) -> None:
    assert is_sound(squares, rates) == sound
