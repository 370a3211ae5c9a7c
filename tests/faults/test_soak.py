"""A short form of benchmarks/soak.py: memory stays flat, and the ranks hold one anchor."""

import framework
from launch import horovodrun


def test_memory_is_flat_and_all_ranks_end_with_one_anchor() -> None:
    done = horovodrun(
        2,
        "-m",
        "benchmarks.soak",
        "--framework",
        framework.current(),
        "--steps",
        "2000",
    )
    assert done.returncode == 0, done.stdout
    assert "anchors equal bit for bit on all ranks" in done.stdout
