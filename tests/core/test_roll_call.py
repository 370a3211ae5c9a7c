"""Reading the marks that all workers leave in a sync, on paper."""

import pytest

from slowmo_hvd.core.roll_call import (
    call_roll,
    exclusion,
    leave_out_outliers,
    mark,
)


def test_a_worker_marks_its_step_and_a_broken_one_its_negative() -> None:
    assert (mark(12, sound=True), mark(12, sound=False)) == (12, -12)


def test_those_who_joined_are_absent_and_those_who_broke_are_present() -> None:
    roll = call_roll([6.0, 0.0, -6.0, 6.0], [0, 2, 4, 6], "exclude")
    assert (roll.present, roll.contributors, roll.excluded) == (3, 2, (4,))


def test_all_may_change_their_parameters_after_one_step() -> None:
    roll = call_roll(
        [mark(6, sound=True, changing=True), 0.0, mark(6, sound=True, changing=True)],
        [0, 1, 2],
        "raise",
    )
    assert (roll.present, roll.excluded) == (2, ())


@pytest.mark.parametrize("theirs", [6.0, -6.0, 9.0])
def test_a_change_of_the_parameters_on_some_ranks_is_told_apart_from_a_sync(theirs: float) -> None:
    with pytest.raises(
        RuntimeError, match=r"ranks 0, 5 changed which .* and rank 3 did not: freeze"
    ):
        call_roll(
            [mark(6, sound=True, changing=True), theirs, mark(6, sound=True, changing=True)],
            [0, 3, 5],
            "exclude",
        )


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
    (broken,) = exclusion((3,), (), 24)
    assert broken.startswith("after 24 steps the weights of rank 3 are not finite")
    (broken,) = exclusion((3, 5), (), 24)
    assert "of ranks 3, 5 are" in broken
    broken, far = exclusion((3, 5), (5,), 24)
    assert "of rank 3 are not finite" in broken
    assert far.startswith("after 24 steps rank 5 moved by more than outlier_factor times")
    assert exclusion((), (), 24) == []


@pytest.mark.parametrize(
    ("norms", "factor", "outliers"),
    [
        ([1.0, 2.0, 3.0], 2.0, ()),  # the median is 2
        ([1.0, 2.0, 4.1], 2.0, (4,)),
        ([1.0, 1.0, 5.0], 4.0, (4,)),
        ([0.0, 0.0, 5.0], 4.0, ()),  # most stand still, as at learning rate 0
        ([9.0, 9.0, 0.1], 4.0, ()),  # one that stays behind is no outlier
    ],
)
def test_who_has_moved_much_further_than_most_is_left_out(
    norms: list[float], factor: float, outliers: tuple[int, ...]
) -> None:
    roll = call_roll([6.0, 6.0, 6.0], [0, 2, 4], "exclude")
    roll = leave_out_outliers(roll, dict(zip([0, 2, 4], norms, strict=True)), factor)
    assert (roll.outliers, roll.excluded) == (outliers, outliers)
    assert (roll.contributors, roll.sound) == (3 - len(outliers), 3)


def test_of_two_only_a_factor_below_two_leaves_one_out() -> None:
    """Their median is their mean."""
    roll = call_roll([6.0, 6.0], [0, 1], "exclude")
    assert leave_out_outliers(roll, {0: 1.0, 1: 1e9}, 2.0).outliers == ()
    assert leave_out_outliers(roll, {0: 1.0, 1: 9.0}, 1.5).outliers == (1,)


def test_who_is_not_finite_or_has_joined_does_not_count_for_the_median() -> None:
    roll = call_roll([6.0, -6.0, 0.0, 6.0, 6.0], [0, 1, 2, 3, 4], "exclude")
    norms = {0: 1.0, 1: 0.0, 2: 0.0, 3: 1.0, 4: 7.0}
    roll = leave_out_outliers(roll, norms, 3.0)
    assert (roll.excluded, roll.outliers, roll.contributors, roll.sound) == ((1, 4), (4,), 2, 3)
