"""When syncs fall due, and which γ a window has."""

import pytest

from slowmo_hvd.core.schedule import MeanLearningRate, Schedule, Sync


def syncs(schedule: Schedule, steps: int, flush_after: tuple[int, ...] = ()) -> dict[int, Sync]:
    """The sync after each step that has one, as an adapter carries them out."""
    done = {}
    for step in range(1, steps + 1):
        due = schedule.tick()
        if due is None and step in flush_after and schedule.position > 0:
            due = Sync.FLUSH
        if due is not None:
            done[step] = due
            schedule.end(due)
    return done


@pytest.mark.parametrize("period", [1, 2, 3, 7])
def test_a_window_ends_after_every_tau_steps_exactly(period: int) -> None:
    expected = dict.fromkeys(range(period, 22, period), Sync.WINDOW)
    assert syncs(Schedule(period), 21) == expected


def test_before_the_first_step_nothing_is_due() -> None:
    schedule = Schedule(3)
    assert (schedule.step, schedule.window, schedule.position) == (0, 0, 0)


def test_the_counters_are_the_papers_t_and_k() -> None:
    schedule = Schedule(3)
    seen = []
    for _ in range(7):
        due = schedule.tick()
        if due is not None:
            schedule.end(due)
        seen.append((schedule.step, schedule.window, schedule.position))
    assert seen == [(1, 0, 1), (2, 0, 2), (3, 1, 0), (4, 1, 1), (5, 1, 2), (6, 2, 0), (7, 2, 1)]


def test_each_warm_up_step_is_followed_by_an_average_and_then_the_windows_begin() -> None:
    assert syncs(Schedule(3, warmup_steps=2), 9) == {
        1: Sync.WARMUP,
        2: Sync.WARMUP,
        5: Sync.WINDOW,
        8: Sync.WINDOW,
    }


def test_the_warm_up_counts_no_window_and_no_position() -> None:
    schedule = Schedule(3, warmup_steps=2)
    syncs(schedule, 2)
    assert (schedule.step, schedule.window, schedule.position) == (2, 0, 0)


def test_warming_up_is_about_the_next_step() -> None:
    schedule = Schedule(3, warmup_steps=2)
    seen = [schedule.warming_up]
    for _ in range(3):
        schedule.tick()
        seen.append(schedule.warming_up)
    assert seen == [True, True, False, False]
    assert not Schedule(3).warming_up


def test_after_a_flush_the_next_window_has_all_its_steps() -> None:
    assert syncs(Schedule(3), 9, flush_after=(4,)) == {
        3: Sync.WINDOW,
        4: Sync.FLUSH,
        7: Sync.WINDOW,
    }


def test_a_sync_that_failed_is_due_again_after_the_next_step() -> None:
    schedule = Schedule(2)
    assert schedule.tick() is None
    assert schedule.tick() is Sync.WINDOW  # and fails: nobody calls end()
    assert schedule.tick() is Sync.WINDOW
    schedule.end(Sync.WINDOW)
    assert (schedule.window, schedule.position) == (1, 0)
    assert schedule.tick() is None
    assert schedule.tick() is Sync.WINDOW


def test_a_warm_up_sync_that_failed_at_the_end_leaves_a_whole_first_window() -> None:
    schedule = Schedule(2, warmup_steps=1)
    assert schedule.tick() is Sync.WARMUP  # and fails
    assert schedule.tick() is None
    assert schedule.tick() is Sync.WINDOW


def test_gamma_is_the_mean_learning_rate_of_the_windows_steps() -> None:
    rate = MeanLearningRate()
    for lr in (0.0, 0.25, 0.5):
        rate.add(lr)
    assert rate.mean == 0.25
    rate.clear()
    rate.add(1.0)
    assert rate.mean == 1.0


def test_gamma_of_no_steps_is_zero_and_divides_nothing() -> None:
    assert MeanLearningRate().mean == 0.0


def test_a_learning_rate_that_is_a_container_is_read_and_never_changed() -> None:
    class Cell:
        """Like a tensor: ``+=`` would change it in place."""

        def __init__(self, value: float) -> None:
            self.value = value

        def __add__(self, other: "Cell | float") -> "Cell":
            return Cell(self.value + (other.value if isinstance(other, Cell) else other))

        __radd__ = __add__

        def __iadd__(self, other: "Cell | float") -> "Cell":
            raise AssertionError("the optimizer's own learning rate was changed")

        def __float__(self) -> float:
            return self.value

    lr, rate = Cell(0.5), MeanLearningRate()
    rate.add(lr)
    rate.add(lr)
    assert rate.mean == 0.5
    assert lr.value == 0.5
