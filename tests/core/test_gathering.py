"""Plain data between ranks, over a gather that carries numbers alone."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from slowmo_hvd.core.gathering import gather_json


def exchange(*values: Any) -> list[dict[int, Any]]:
    """What each rank gets, where ranks are threads that meet in every gather."""
    table: dict[int, Sequence[float]] = {}
    meeting = threading.Barrier(len(values), timeout=10)
    results: list[dict[int, Any]] = [{} for _ in values]

    def rank(number: int) -> None:
        def gather(figures: Sequence[float]) -> Mapping[int, Sequence[float]]:
            meeting.wait()
            table[number] = [float(figure) for figure in figures]
            assert table[number] == list(figures)  # a float64 holds them exactly
            meeting.wait()
            assert len({len(row) for row in table.values()}) == 1  # as a sum of rows needs it
            return dict(table)

        results[number] = gather_json(values[number], gather)

    threads = [threading.Thread(target=rank, args=[number]) for number in range(len(values))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize(
    "values",
    [
        (1, 2),
        ("a", "a much longer text, of more than six bytes"),
        ([], {"x": [1.5, None, True]}, "τ β γ"),
        ("1234", "12345", "123456", ""),  # with their quotes 6, 7, 8 and 2 bytes
        (list(range(500)), 0),
    ],
)
def test_every_rank_gets_everyones_value_whatever_their_lengths(values: tuple[Any, ...]) -> None:
    assert exchange(*values) == [dict(enumerate(values))] * len(values)
