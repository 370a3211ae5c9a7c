"""The choice of cases: every value and pair, few cases, the same each time."""

import itertools
from collections import Counter
from typing import Any

import pytest
from pairwise import choose
from ranks import everyone


def matrix(**factors: Any) -> list[dict[str, Any]]:
    return [
        dict(zip(factors, values, strict=True)) for values in itertools.product(*factors.values())
    ]


def pairs(cases: list[dict[str, Any]], *factors: str) -> set[tuple[Any, ...]]:
    return {tuple(case[factor] for factor in factors) for case in cases}


THREE = matrix(a=range(7), b=range(5), c="xyz")


def test_every_pair_of_three_factors_is_in_few_of_their_cases() -> None:
    chosen = [THREE[position] for position in choose(THREE)]
    for two in itertools.combinations("abc", 2):
        assert pairs(chosen, *two) == pairs(THREE, *two)
    assert 35 <= len(chosen) <= 40  # of 105; 35 are needed for the pairs of the larger two


def test_pairs_that_are_elsewhere_are_left_out_and_no_value_is() -> None:
    chosen = [THREE[position] for position in choose(THREE, elsewhere=("a", "b"))]
    assert pairs(chosen, "a", "c") == pairs(THREE, "a", "c")
    assert pairs(chosen, "b", "c") == pairs(THREE, "b", "c")
    assert 21 <= len(chosen) <= 24
    fewest = [THREE[position] for position in choose(THREE, elsewhere="abc")]
    assert len(fewest) == 7
    assert Counter(case["c"] for case in fewest).most_common(1)[0][1] == 3  # they take turns


def test_three_settings_with_two_values_each_meet_in_four_cases() -> None:
    assert len(choose(matrix(a="xy", b="xy", c="xy"))) == 4


def test_of_one_factor_or_two_all_cases_are_needed() -> None:
    for whole in (matrix(a=range(4)), matrix(a=range(4), b="xy")):
        assert choose(whole) == list(range(len(whole)))
    assert choose([]) == []


def test_pairs_that_no_case_has_are_not_missed() -> None:
    legal = [case for case in THREE if (case["a"], case["c"]) != (0, "x")]
    chosen = [legal[position] for position in choose(legal)]
    assert pairs(chosen, "a", "c") == pairs(legal, "a", "c")


@pytest.mark.ranks(2)
def test_all_ranks_choose_alike() -> None:
    first, second = everyone(choose(THREE))
    assert first == second
