"""A long vector in several variables reads and writes like one array."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from slowmo_hvd.tensorflow import flat
from slowmo_hvd.tensorflow.flat import Flat

pytestmark = pytest.mark.ranks(1)


def of(size: int) -> Flat:
    """The numbers 0, 1, 2, ..., in variables of four elements."""

    def add_variable(*, shape: tuple[int], dtype: str, name: str) -> tf.Variable:
        return tf.Variable(tf.zeros(shape, dtype), name=name)

    made = Flat(size, "float32", "anchor", add_variable)
    made.write([(slice(0, size), tf.range(size, dtype=tf.float32))])
    return made


@pytest.fixture(autouse=True)
def chunks_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "_CHUNK", 4)


@pytest.mark.parametrize(("size", "sizes"), [(0, [0]), (3, [3]), (4, [4]), (9, [4, 4, 1])])
def test_it_is_cut_into_variables_of_a_bounded_size(size: int, sizes: list[int]) -> None:
    made = of(size)
    assert [variable.shape[0] for variable in made.variables] == sizes
    names = ["anchor", "anchor_1", "anchor_2"]
    assert [v.name.removesuffix(":0") for v in made.variables] == names[: len(sizes)]


@pytest.mark.parametrize("start", range(10))
def test_every_slice_is_read(start: int) -> None:
    made = of(9)
    for stop in range(start, 10):
        assert made.read(slice(start, stop)).numpy().tolist() == list(range(start, stop))


@pytest.mark.parametrize(
    "slices", [[(0, 9)], [(2, 3)], [(3, 5)], [(0, 4), (4, 9)], [(0, 1), (2, 7), (8, 9)], []]
)
def test_slices_are_written_and_all_else_stays(slices: list[tuple[int, int]]) -> None:
    made, expected = of(9), np.arange(9.0)
    updates: list[tuple[slice, Any]] = []
    for start, stop in slices:
        expected[start:stop] *= -1
        updates.append((slice(start, stop), -tf.range(start, stop, dtype=tf.float32)))
    made.write(updates)
    assert made.read(slice(0, 9)).numpy().tolist() == expected.tolist()
