"""Saved by some processes, resumed by others: bit for bit by as many, and by any number of them."""

import json
from pathlib import Path

from inner_optimizers import INNER
from launch import ROOT, horovodrun

ENV = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests' / 'torch'}"}


def run(ranks: int, script: str, *arguments: str) -> None:
    path = str(ROOT / "tests" / "torch" / script)
    done = horovodrun(ranks, path, *arguments, env=ENV)
    assert done.returncode == 0, done.stdout


def test_every_optimizer_strategy_and_position_resumes_bit_for_bit_in_new_processes(
    tmp_path: Path,
) -> None:
    for command in ("save", "resume"):
        run(2, "resume_cases.py", command, str(tmp_path))
    cases = sum(len(inner.strategies) * len(inner.dtypes) for inner in INNER.values())
    paced = 2 * 2 * 3 * 2  # optimizers, strategies, paces, dtypes
    for rank in range(2):
        report = json.loads((tmp_path / f"report.{rank}").read_text())
        assert report == {"resumed": (cases + paced) * 4, "parted": []}


def test_saved_by_two_ranks_and_resumed_by_any_number_in_both_orders(tmp_path: Path) -> None:
    """Broadcast before wrapping, or after.

    By hand: x = 1 and u = 1 after a window of lr 1 in which gradients averaged to 1/2.
    Then each worker takes two steps with gradient 0: x = 1 - 1/2 u = 1/2, on however many ranks.
    """
    run(2, "resume_on_others.py", "save", str(tmp_path))
    for ranks in (1, 3, 4):
        run(ranks, "resume_on_others.py", "resume", str(tmp_path))
        reports = [json.loads((tmp_path / f"{ranks}.{rank}").read_text()) for rank in range(ranks)]
        assert reports == [[{"loaded": [1.0, 1.0, 1.0], "in the end": 0.5}] * 2] * ranks
