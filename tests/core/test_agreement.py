"""Ranks that differ learn of it, all alike: which setting, which ranks, and both values."""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from slowmo_hvd.core import agreement
from slowmo_hvd.core.agreement import Figures, check_agreement, figures_of
from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.schedule import Schedule
from slowmo_hvd.core.schedules import linear, qsr

SHAPES: Sequence[Sequence[int]] = ((3,), (2, 2))


def figures(
    *,
    schedule: dict[str, Any] | None = None,
    has_slow_state: bool = False,
    shapes: Sequence[Sequence[int]] = SHAPES,
    dtype: str = "float32",
    group_size: int = 2,
    compression: str = "none",
    **settings: Any,
) -> Figures:
    config = SlowMoConfig(**settings)
    counters = Schedule(config)
    vars(counters).update(schedule or {})
    params = [(tuple(shape), dtype) for shape in shapes]
    return figures_of(
        config,
        counters,
        has_slow_state=has_slow_state,
        compression=compression,
        groups=[params[start : start + group_size] for start in range(0, len(params), group_size)],
    )


def errors(by_rank: Mapping[int, Figures]) -> list[str | None]:
    """What every rank raises, the ranks being threads that meet where real ones communicate."""
    meet = threading.Barrier(len(by_rank), timeout=10)
    board: dict[int, list[float]] = {}

    def on(rank: int) -> str | None:
        def gather(values: Sequence[float]) -> dict[int, list[float]]:
            board[rank] = list(values)
            meet.wait()
            seen = dict(board)
            meet.wait()
            return seen

        values = {rank: figures.values for rank, figures in by_rank.items()}
        try:
            check_agreement(by_rank[rank], values, gather)
        except ValueError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(len(by_rank)) as pool:
        return list(pool.map(on, by_rank))


def complaint(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """The one error where ranks 0 and 1 have ``ours`` and rank 2 has ``theirs``."""
    mine, other = figures(**ours), figures(**theirs)
    (said,) = set(errors({0: mine, 1: mine, 2: other}))
    assert said is not None
    assert said.startswith("the ranks differ in ")
    return said


def test_equal_ranks_agree() -> None:
    same = figures(buffers="average", nesterov=True, schedule={"step": 7})
    assert errors(dict.fromkeys(range(4), same)) == [None] * 4


def test_one_rank_agrees_with_itself() -> None:
    assert errors({5: figures()}) == [None]


def test_the_figures_have_names_and_are_numbers_for_the_wire() -> None:
    made = figures()
    assert len(made.names) == len(made.values) == len(set(made.names))
    assert all(type(value) is float for value in made.values)


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "said"),
    [
        ("sync_period", 12, 24, "12 on rank 0, 24 on rank 2"),
        ("slow_lr", 1.0, 0.5, "1.0 on rank 0, 0.5 on rank 2"),
        ("slow_lr", 1.0, linear(1, 2, 3), "1.0 on rank 0, 'Linear(first=1, last=2, length=3)' on"),
        ("sync_period", qsr(4, 0.2), 4, "'QSR(base=4, coefficient=0.2, total_steps=None, power"),
        ("outlier_factor", None, 5, "None on rank 0, 5.0 on rank 2"),
        ("clip_displacement", 1, None, "1.0 on rank 0, None on rank 2"),
        ("slow_momentum", 0.5, 0.25, "0.5 on rank 0, 0.25 on rank 2"),
        ("nesterov", False, True, "0 on rank 0, 1 on rank 2"),
        ("warmup_steps", 0, 100, "0 on rank 0, 100 on rank 2"),
        ("buffers", "reset", "average", "'reset' on rank 0, 'average' on rank 2"),
    ],
)
def test_an_unequal_setting_is_named_with_both_ranks_and_values(
    name: str, ours: Any, theirs: Any, said: str
) -> None:
    assert f"differ in {name}: {said}" in complaint({name: ours}, {name: theirs})


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("steps taken", {"step": 6}),
        ("window", {"windows": [2]}),
        ("position in the window", {"positions": [1]}),
        ("the step after which an average lands", {"landings": [9]}),
    ],
)
def test_an_unequal_position_says_how_to_share_a_checkpoint(
    name: str, theirs: dict[str, Any]
) -> None:
    message = complaint({}, {"schedule": theirs})
    (value,) = theirs.values()
    value = value[0] if isinstance(value, list) else value
    assert f"differ in {name}: 0 on rank 0, {value} on rank 2" in message
    assert "hvd.broadcast_optimizer_state(optimizer, root_rank=0)" in message


def test_of_fragments_the_first_that_differs_is_named() -> None:
    theirs = {"fragments": 2, "schedule": {"windows": [3, 4]}}
    message = complaint({"fragments": 2, "schedule": {"windows": [3, 3]}}, theirs)
    assert "differ in window: number 1 is 3 on rank 0, 4 on rank 2" in message
    assert "hvd.broadcast_optimizer_state(optimizer, root_rank=0)" in message


def test_another_number_of_fragments_is_named_before_their_counters() -> None:
    message = complaint({}, {"fragments": 2})
    assert "differ in fragments: 1 on rank 0, 2 on rank 2" in message


def test_a_slow_state_on_some_ranks_only_says_how_to_share_it() -> None:
    message = complaint({}, {"has_slow_state": True})
    assert "hvd.broadcast_optimizer_state(optimizer, root_rank=0)" in message


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (((3,),), "number of parameters: 2 on rank 0, 1 on rank 2"),
        (((3,), (2, 3)), "number of elements: 7 on rank 0, 9 on rank 2"),
    ],
)
def test_another_size_of_model_is_told_with_both_sizes(
    theirs: Sequence[Sequence[int]], said: str
) -> None:
    assert said in complaint({}, {"shapes": theirs})


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (((2, 2), (3,)), "number 0 is [3] on rank 0, [2, 2] on rank 2"),  # another order
        (((3,), (4,)), "number 1 is [2, 2] on rank 0, [4] on rank 2"),  # as many elements
        (((3,), (1, 4)), "number 1 is [2, 2] on rank 0, [1, 4] on rank 2"),
        (((3, 1), (2, 2)), "number 0 is [3] on rank 0, [3, 1] on rank 2"),
        (((), (2, 3)), "number 0 is [3] on rank 0, [] on rank 2"),  # 1 + 6 elements
    ],
)
def test_another_model_of_the_same_size_is_told_by_the_first_parameter_that_differs(
    theirs: Sequence[Sequence[int]], said: str
) -> None:
    message = complaint({}, {"shapes": theirs})
    assert f"order or shapes of the parameters: {said};" in message


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (
            {"dtype": "bfloat16"},
            "dtypes of the parameters: number 0 is 'float32' on rank 0, 'bfloat16' on rank 2",
        ),
        ({"group_size": 1}, "parameter groups: [2] on rank 0, [1, 1] on rank 2"),
        ({"compression": "fp16"}, "compression: 'none' on rank 0, 'fp16' on rank 2"),
    ],
)
def test_dtypes_groups_and_compression_are_compared_too(theirs: dict[str, Any], said: str) -> None:
    assert f"differ in {said};" in complaint({}, theirs)


def test_another_version_of_this_package_is_told_with_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agreement, "__version__", "1.2.0")
    mine = figures()
    monkeypatch.setattr(agreement, "__version__", "1.3.0")
    said = (
        "the ranks differ in slowmo_hvd's version: '1.2.0' on rank 0, '1.3.0' on rank 1; "
        "install the same version on every host"
    )
    assert errors({0: mine, 1: figures()}) == [said, said]


def test_a_value_too_long_to_read_is_cut() -> None:
    name = "a" * 1000
    assert len(complaint({}, {"compression": name})) < 500


def test_a_name_that_is_not_ascii_travels() -> None:
    assert "'größe' on rank 2" in complaint({}, {"compression": "größe"})


def test_where_one_size_ends_and_the_next_begins_matters() -> None:
    message = complaint({"shapes": ((1, 2), (3,))}, {"shapes": ((1,), (2, 3))})
    assert "number of elements" in message
    message = complaint({"shapes": ((2,), (1, 2))}, {"shapes": ((2, 1), (2,))})
    assert "order or shapes" in message


def test_every_rank_raises_the_same_error_against_the_lowest_rank_left() -> None:
    mine, other = figures(sync_period=12), figures(sync_period=3)
    # Rank 0 has joined; the order in which the others came does not matter.
    for by_rank in ({1: mine, 2: other, 3: other}, {3: other, 2: other, 1: mine}):
        (said,) = set(errors(by_rank))
        assert said is not None
        assert "12 on rank 1, 3 on rank 2" in said


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ({"slow_lr": 0.7}, {"slow_lr": 0.7000001}, "0.7 on rank 0, 0.7000001 on rank 2"),
        (
            {"schedule": {"step": 1_000_000}},
            {"schedule": {"step": 1_000_001}},
            "1000000 on rank 0, 1000001 on rank 2",
        ),
    ],
)
def test_values_that_differ_by_little_do_not_read_as_equal(
    ours: dict[str, Any], theirs: dict[str, Any], said: str
) -> None:
    assert said in complaint(ours, theirs)
