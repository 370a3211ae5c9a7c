"""A learning rate is chosen where both its neighbours are worse, or where the grid ends."""

import math

import pytest

from experiments.tuning import best, loss_of, next_rates

GRID = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


@pytest.mark.parametrize("middle", GRID)
@pytest.mark.parametrize("optimum", GRID)
def test_the_search_ends_at_the_valleys_bottom_wherever_it_begins(
    optimum: float, middle: float
) -> None:
    tried: dict[float, float] = {}
    while rates := next_rates(GRID, middle, tried):
        tried[rates[-1]] = abs(math.log(rates[-1] / optimum))  # whichever is done first
    assert best(tried) == optimum
    at = GRID.index(optimum)
    assert set(GRID[max(at - 1, 0) : at + 2]) <= set(tried)


def test_a_rate_at_which_training_diverges_is_the_worst() -> None:
    looks = [{"loss": 3.0}, {"loss": 2.0}]
    assert loss_of({"diverged": False, "looks": looks}, "loss") == 2.0
    assert loss_of({"diverged": True, "looks": looks}, "loss") == math.inf
    assert next_rates(GRID, 0.4, {0.2: 5.0, 0.4: math.inf, 0.8: math.inf}) == [0.1]
    assert next_rates(GRID, 0.4, dict.fromkeys((0.2, 0.4, 0.8), math.inf)) == [0.1]
    assert next_rates(GRID, 0.4, dict.fromkeys(GRID, math.inf)) == []
