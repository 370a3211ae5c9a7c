"""What the wrapper adds at its peak: the slow state and a few buckets, at every moment."""

from typing import Any

import pytest

import slowmo_hvd.torch as hvd
from benchmarks.memory import moments

MIB = 2**20
LAYERS, BUCKET = 40, MIB  # 42 MB of parameters: a third copy of the model would be seen
ALL = pytest.mark.only_all_cases
BESIDES = 24 * MIB  # three buckets, what travels of a first step, and what Python itself takes


@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    ("settings", "copies"),
    [
        ({"slow_momentum": 0.5}, 2),
        pytest.param({"slow_momentum": 0.0}, 1, marks=ALL),
        pytest.param({"slow_momentum": 0.5, "overlap_steps": 1}, 3, marks=ALL),
        ({"slow_momentum": 0.0, "overlap_steps": 1, "fragments": 3}, 1 + 1 / 3),
    ],
    ids=str,
)
def test_at_no_moment_is_there_another_copy_of_the_model(
    settings: dict[str, Any], copies: float
) -> None:
    for moment, extra, size in moments(LAYERS, bucket_bytes=BUCKET, **settings):
        allowed = copies * size + BESIDES
        worst = max(hvd.allgather_object(extra))
        assert worst < allowed, f"{moment}: {(worst - allowed) / MIB:.0f} MiB too many"
