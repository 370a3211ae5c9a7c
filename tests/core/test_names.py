"""The numbers by which ranks name their optimizers' collectives."""

from collections.abc import Iterable

import pytest

from slowmo_hvd.core.names import agreed_serial
from slowmo_hvd.core.names import claim as claim_among


def claim(serial: int | None, others: Iterable[int | None]) -> list[float]:
    return claim_among(serial, lambda: others)


def test_the_first_takes_0_and_the_next_the_smallest_that_is_free_on_every_rank() -> None:
    assert agreed_serial({0: claim(None, []), 1: claim(None, [])}) == 0
    assert agreed_serial({0: claim(None, [0, 3]), 1: claim(None, [0, 1, None])}) == 2


def test_a_number_is_free_again_when_its_optimizer_is_gone() -> None:
    assert agreed_serial({0: claim(None, [1]), 1: claim(None, [1])}) == 0


def test_an_optimizer_that_some_rank_has_named_keeps_its_name() -> None:
    assert agreed_serial({0: claim(None, [0, 1]), 2: claim(4, [0, 1])}) == 4


def test_ranks_that_have_named_an_optimizer_differently_learn_which() -> None:
    text = "is number 0 on rank 0 and number 3 on rank 2: take the first steps"
    with pytest.raises(RuntimeError, match=text):
        agreed_serial({0: claim(0, []), 1: claim(None, []), 2: claim(3, [])})


def test_there_is_a_limit_and_it_is_told() -> None:
    assert agreed_serial({0: claim(None, range(52))}) == 52
    with pytest.raises(RuntimeError, match="more than 53 DistributedOptimizers are in use"):
        agreed_serial({0: claim(None, range(53))})


def test_dropped_optimizers_are_collected_before_the_numbers_run_out() -> None:
    answers = [range(30), range(2)]
    assert agreed_serial({0: claim_among(None, lambda: answers.pop(0))}) == 2
    assert not answers
