"""The plan of the buckets: every element travels exactly once, whatever the model."""

from collections import defaultdict
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slowmo_hvd.core.buckets import Bucket, Leaf, Piece, Plan, Run, plan, share_out


class Room(NamedTuple):
    """A stand-in for an adapter's: a dtype."""

    name: str
    itemsize: int


A, B = Room("a", 1), Room("b", 4)
leaves_of_any_model = st.dictionaries(
    st.integers(0, 10_000),
    st.builds(Leaf, st.integers(0, 50), st.sampled_from([A, B]), st.integers(0, 2)),
    max_size=30,
)


@given(leaves_of_any_model, st.data(), st.integers(1, 70), st.integers(1, 4))
def test_every_element_travels_exactly_once(
    leaves: dict[int, Leaf], data: st.DataObject, bucket_bytes: int, fragments: int
) -> None:
    trained = data.draw(st.sets(st.sampled_from(list(leaves)))) if leaves else set()
    positions = list(leaves)
    shared = share_out([leaf.size for leaf in leaves.values()], fragments)
    parts = [[positions[index] for index in part] for part in shared]
    made = plan(leaves, trained, bucket_bytes, parts)
    assert len(made.fragments) == fragments
    check_places(made, leaves)
    seen: dict[int, list[int]] = defaultdict(list)
    for bucket in made.buckets:
        check_bucket(bucket, made, leaves)
        assert 0 < bucket.nbytes <= max(bucket_bytes, bucket.room.itemsize)
        for piece in bucket.pieces:
            seen[piece.leaf] += range(piece.start, piece.stop)
    assert {leaf: sorted(seen[leaf]) for leaf in trained} == {
        leaf: list(range(leaves[leaf].size)) for leaf in trained
    }
    assert set(seen) == set(trained)


def check_places(made: Plan, leaves: dict[int, Leaf]) -> None:
    """Each parameter has elements of its room to itself, and no element is idle."""
    used: dict[object, list[int]] = defaultdict(list)
    for position, leaf in leaves.items():
        used[leaf.room] += range(made.places[position], made.places[position] + leaf.size)
    assert {room: sorted(elements) for room, elements in used.items()} == {
        room: list(range(size)) for room, size in made.sizes.items()
    }


def check_bucket(bucket: Bucket, made: Plan, leaves: dict[int, Leaf]) -> None:
    """Pieces and runs say the same of each element: where it is in the room, and its group."""
    by_pieces = [
        (made.places[piece.leaf] + element, leaves[piece.leaf].group)
        for piece in bucket.pieces
        for element in range(piece.start, piece.stop)
    ]
    by_runs = [
        (element, run.group) for run in bucket.runs for element in range(run.start, run.stop)
    ]
    assert by_pieces == by_runs
    assert len(by_pieces) == bucket.size
    assert all(leaves[piece.leaf].room == bucket.room for piece in bucket.pieces)
    for parts in (bucket.pieces, bucket.runs):
        ends = [0, *(part.offset + part.stop - part.start for part in parts)]
        assert [part.offset for part in parts] == ends[:-1]


def test_a_large_parameter_is_cut_and_small_ones_share_a_bucket() -> None:
    leaves = {0: Leaf(2, A, 0), 1: Leaf(6, A, 0), 2: Leaf(3, A, 1)}
    made = plan(leaves, leaves, 4)
    assert made.places == {0: 0, 1: 2, 2: 8}
    assert made.buckets == [
        Bucket(A, 4, (Piece(0, 0, 2, 0), Piece(1, 0, 2, 2)), (Run(0, 0, 4, 0),)),
        Bucket(A, 4, (Piece(1, 2, 6, 0),), (Run(0, 4, 8, 0),)),
        Bucket(A, 3, (Piece(2, 0, 3, 0),), (Run(1, 8, 11, 0),)),
    ]


def test_what_is_not_trained_keeps_its_place_and_stays_at_home() -> None:
    leaves = dict.fromkeys(range(3), Leaf(2, A, 0))
    made = plan(leaves, [0, 2], 10)
    assert made.sizes == {A: 6}
    assert made.buckets == [
        Bucket(A, 4, (Piece(0, 0, 2, 0), Piece(2, 0, 2, 2)), (Run(0, 0, 2, 0), Run(0, 4, 6, 2)))
    ]


def test_sizes_as_those_that_a_rewritten_bucketing_once_lost() -> None:
    # torchft drops the second of [6, 6] with a capacity of 10.
    leaves = dict.fromkeys(range(2), Leaf(6, A, 0))
    assert [bucket.size for bucket in plan(leaves, leaves, 10).buckets] == [10, 2]


def test_ten_thousand_tiny_parameters_share_one_bucket() -> None:
    leaves = dict.fromkeys(range(10_000), Leaf(200, A, 0))
    (bucket,) = plan(leaves, leaves, 2**23).buckets
    assert (bucket.size, len(bucket.pieces), len(bucket.runs)) == (2_000_000, 10_000, 1)


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ([5, 5, 5, 5], [[0, 2], [1, 3]]),  # equal ones go round
        (
            [9, 1, 9, 1, 9, 1],
            [[0, 3, 4], [1, 2, 5]],
        ),  # not all weights together
        ([100, 1, 1, 1], [[0], [1, 2, 3]]),  # an embedding travels alone
    ],
)
def test_the_parts_are_of_about_equal_size(sizes: list[int], parts: list[list[int]]) -> None:
    assert share_out(sizes, 2) == parts
