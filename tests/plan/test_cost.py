"""The planner's formulas, by hand, and beside what the SlowMo paper measured."""

import pytest

from slowmo_hvd.plan.cost import (
    Measured,
    Ring,
    Training,
    Way,
    bytes_a_step,
    smallest_period,
    step_seconds,
)

#: 1 GB a step and worker at 8 Gbit/s between two: an allreduce takes one second.
WIRE = Ring(workers=2, rate=8e9)
TRAINING = Training(parameters=250_000_000, step=0.5)


def test_a_ring_by_hand() -> None:
    assert WIRE.seconds(1e9, 4) == 1.0
    # Six messages of a quarter of the bytes each, and of 10 ms.
    assert Ring(4, 8e9, latency=0.01).seconds(1e9, 4) == pytest.approx(6 * (0.25 + 0.01))


def test_between_two_sizes_and_beyond_them_the_measured_times_are_a_line() -> None:
    wire = Measured(2, {4: [(1000, 1.0), (2000, 3.0), (4000, 4.0)]})
    times = [wire.seconds(size, 4) for size in (1000, 1500, 2000, 3000, 4000, 6000)]
    assert times == [1.0, 2.0, 3.0, 3.5, 4.0, 5.0]
    assert wire.seconds(0, 4) == 0.0  # and never below nothing


@pytest.mark.parametrize(
    ("way", "seconds"),
    [
        (Way(), 0.5 + 1.0),
        (Way(itemsize=2), 0.5 + 0.5),
        (Way(4), (4 * 0.5 + 1.0) / 4),
        (Way(4, itemsize=2), (4 * 0.5 + 0.5) / 4),
        (Way(4, overlap=1), (4 * 0.5 + 0.5) / 4),  # half of the average is left after one step
        (Way(4, overlap=2), 0.5),
        (Way(4, overlap=1, fragments=2), 0.5),  # each half takes one step
        (Way(1, overlap=0), 1.5),
        (Way(2, overlap=1, fragments=4), (2 * 0.5) / 2),
    ],
    ids=str,
)
def test_a_step_by_hand(way: Way, seconds: float) -> None:
    assert step_seconds(way, TRAINING, WIRE) == pytest.approx(seconds)


def test_no_window_is_shorter_than_its_bytes_need() -> None:
    slow = Ring(workers=2, rate=1e9)  # eight seconds an average, and two a window
    assert step_seconds(Way(4, overlap=3), TRAINING, slow) == pytest.approx(
        max(4 * 0.5 + 8 - 1.5, 8.0) / 4
    )
    assert step_seconds(Way(4, overlap=3, fragments=4), TRAINING, slow) >= 8 / 4


def test_who_waits_for_the_slowest_waits_less_in_longer_windows() -> None:
    uneven = Training(250_000_000, 0.5, spread=0.1)
    assert uneven.slowest(1, 1) == 0.5
    assert uneven.slowest(4, 8) / 4 < uneven.slowest(1, 8)


def test_the_smallest_period_is_the_first_that_costs_so_little() -> None:
    assert smallest_period(Way(1), TRAINING, WIRE, 0.05) == 40  # 1 / (0.5 · 40) is 0.05
    assert smallest_period(Way(3, overlap=2), TRAINING, WIRE, 0.05) == 3
    for period in (1, 2, 7, 39, 41, 1000):
        cheap = step_seconds(Way(period), TRAINING, WIRE) <= 1.05 * TRAINING.step
        assert cheap == (period >= 40)


def test_where_no_period_is_cheap_that_is_told() -> None:
    hopeless = Ring(workers=2, rate=1.0)
    assert smallest_period(Way(1), TRAINING, hopeless, 0.05) is None


def test_bytes_of_a_step() -> None:
    assert bytes_a_step(Way(), TRAINING, 2) == 1e9
    assert bytes_a_step(Way(4, itemsize=2), TRAINING, 4) == 250e6 * 2 * 1.5 / 4


@pytest.mark.parametrize(
    ("parameters", "workers", "local", "averaging", "within"),
    [
        (25.6e6, 32, 0.294, 0.420, 0.06),  # ImageNet, ResNet-50, 32 nodes
        (210e6, 8, 0.503, 1.648, 0.06),  # WMT'16 En-De, a big transformer, 8 nodes
    ],
)
def test_the_papers_milliseconds(
    parameters: float, workers: int, local: float, averaging: float, within: float
) -> None:
    """From its step with τ = 12, at 10 Gbit/s, that of gradient averaging (arXiv 1910.00643)."""
    wire = Ring(workers, 10e9)
    alone = local - wire.seconds(4 * parameters, 4) / 12
    training = Training(round(parameters), alone)
    assert step_seconds(Way(12), training, wire) == pytest.approx(local)
    assert step_seconds(Way(), training, wire) == pytest.approx(averaging, rel=within)
