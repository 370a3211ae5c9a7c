"""When syncs fall due, and which γ a window has."""

import pytest

from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.schedule import Due, MeanLearningRate, Schedule, Sync


def schedule_of(sync_period: int, **settings: int) -> Schedule:
    return Schedule(SlowMoConfig(sync_period=sync_period, **settings))


def syncs(schedule: Schedule, steps: int, flush_after: tuple[int, ...] = ()) -> dict[int, Sync]:
    """The sync after each step that has one, as the engine carries them out."""
    done = {}
    for step in range(1, steps + 1):
        due = schedule.tick()
        if due is not None:
            done[step] = due.kind
            schedule.end(due.kind, due.ending)
        elif step in flush_after:
            done[step] = Sync.FLUSH
            schedule.end(Sync.FLUSH, schedule.fragments)
    return done


@pytest.mark.parametrize("period", [1, 2, 3, 7])
def test_a_window_ends_after_every_tau_steps_exactly(period: int) -> None:
    expected = dict.fromkeys(range(period, 22, period), Sync.WINDOW)
    assert syncs(schedule_of(period), 21) == expected


def test_before_the_first_step_nothing_is_due() -> None:
    schedule = schedule_of(3)
    assert (schedule.step, schedule.windows, schedule.positions) == (0, [0], [0])


def test_the_counters_are_the_papers_t_and_k() -> None:
    schedule = schedule_of(3)
    seen = []
    for _ in range(7):
        due = schedule.tick()
        if due is not None:
            schedule.end(due.kind, due.ending)
        seen.append((schedule.step, *schedule.windows, *schedule.positions))
    assert seen == [(1, 0, 1), (2, 0, 2), (3, 1, 0), (4, 1, 1), (5, 1, 2), (6, 2, 0), (7, 2, 1)]


def test_each_warm_up_step_is_followed_by_an_average_and_then_the_windows_begin() -> None:
    assert syncs(schedule_of(3, warmup_steps=2), 9) == {
        1: Sync.WARMUP,
        2: Sync.WARMUP,
        5: Sync.WINDOW,
        8: Sync.WINDOW,
    }


def test_the_warm_up_counts_no_window_and_no_position() -> None:
    schedule = schedule_of(3, warmup_steps=2)
    syncs(schedule, 2)
    assert (schedule.step, schedule.windows, schedule.positions) == (2, [0], [0])


def test_warming_up_is_about_the_next_step() -> None:
    schedule = schedule_of(3, warmup_steps=2)
    seen = [schedule.warming_up]
    for _ in range(3):
        schedule.tick()
        seen.append(schedule.warming_up)
    assert seen == [True, True, False, False]
    assert not schedule_of(3).warming_up


def test_after_a_flush_the_next_window_has_all_its_steps() -> None:
    assert syncs(schedule_of(3), 9, flush_after=(4,)) == {
        3: Sync.WINDOW,
        4: Sync.FLUSH,
        7: Sync.WINDOW,
    }


WINDOW = Due(Sync.WINDOW, ending=(0,), landing=())


def test_a_sync_that_failed_is_due_again_after_the_next_step() -> None:
    schedule = schedule_of(2)
    assert schedule.tick() is None
    assert schedule.tick() == WINDOW  # and fails: nobody calls end()
    assert schedule.tick() == WINDOW
    schedule.end(Sync.WINDOW, [0])
    assert (schedule.windows, schedule.positions) == ([1], [0])
    assert schedule.tick() is None
    assert schedule.tick() == WINDOW


def test_a_warm_up_sync_that_failed_at_the_end_leaves_a_whole_first_window() -> None:
    schedule = schedule_of(2, warmup_steps=1)
    assert schedule.tick() == WINDOW._replace(kind=Sync.WARMUP)  # and fails
    assert schedule.tick() is None
    assert schedule.tick() == WINDOW


def test_each_window_has_the_period_that_was_given_where_it_began() -> None:
    schedule = Schedule(SlowMoConfig(sync_period=lambda step: 2 + step, warmup_steps=1))
    seen = {}
    for _ in range(20):
        due = schedule.tick()
        if due is not None:
            seen[schedule.step] = due.kind
            periods = {0: schedule.next_period(0)} if not schedule.warming_up else {}
            schedule.end(due.kind, due.ending, periods)
    # The warm-up ends after step 1, so windows of 3, 2 + 4 and 2 + 10 steps follow.
    assert seen == {1: Sync.WARMUP, 4: Sync.WINDOW, 10: Sync.WINDOW}
    assert schedule.periods == [12]


def ends(schedule: Schedule, steps: int) -> list[tuple[int, int]]:
    """After which step the window of which fragment ends."""
    seen = []
    for _ in range(steps):
        due = schedule.tick()
        for fragment in due.ending if due else ():
            seen.append((schedule.step, fragment))
            schedule.end(Sync.WINDOW, [fragment])
    return seen


@pytest.mark.parametrize(
    ("period", "fragments", "expected"),
    [
        (4, 2, [(2, 0), (4, 1), (6, 0), (8, 1)]),
        (3, 3, [(1, 0), (2, 1), (3, 2), (4, 0), (5, 1), (6, 2), (7, 0), (8, 1)]),
        (5, 2, [(2, 0), (5, 1), (7, 0)]),  # τ / F is rounded down
        (7, 3, [(2, 0), (4, 1), (7, 2)]),
    ],
)
def test_fragments_take_turns_and_each_has_tau_steps(
    period: int, fragments: int, expected: list[tuple[int, int]]
) -> None:
    assert ends(schedule_of(period, fragments=fragments), 8) == expected


def test_after_a_flush_the_fragments_take_turns_from_there() -> None:
    schedule = schedule_of(4, fragments=2)
    assert ends(schedule, 3) == [(2, 0)]
    schedule.end(Sync.FLUSH, [0, 1])
    assert ends(schedule, 5) == [(5, 0), (7, 1)]


def test_what_was_launched_lands_so_many_steps_later_and_only_once() -> None:
    schedule = schedule_of(3, overlap_steps=2)
    seen = []
    for _ in range(8):
        due = schedule.tick()
        if due is None:
            continue
        seen.append((schedule.step, due.ending, due.landing))
        for fragment in due.landing:
            schedule.land(fragment)
        for fragment in due.ending:
            schedule.launch(fragment)
    assert seen == [(3, (0,), ()), (5, (), (0,)), (6, (0,), ()), (8, (), (0,))]


def test_a_launch_that_failed_is_due_again_with_its_steps() -> None:
    schedule = schedule_of(3, overlap_steps=1)
    ends(schedule, 2)
    schedule.tick()
    schedule.launch(0)
    assert schedule.tick() == Due(Sync.WINDOW, ending=(), landing=(0,))
    schedule.reopen(0, 3)
    assert (schedule.windows, schedule.positions, schedule.landings) == ([0], [4], [0])
    assert schedule.tick() == WINDOW


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
