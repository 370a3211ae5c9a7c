"""Saved by some processes, resumed by others: bit for bit by as many, and by any number of them."""

import json
from pathlib import Path

import pytest
from keras_optimizers import INNER, STRATEGIES
from launch import ROOT, horovodrun

ENV = {
    "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    "KERAS_BACKEND": "tensorflow",
    "CUDA_VISIBLE_DEVICES": "",
}


def run(ranks: int, script: str, *arguments: str) -> None:
    path = str(ROOT / "tests" / "tensorflow" / script)
    done = horovodrun(ranks, path, *arguments, env=ENV)
    assert done.returncode == 0, done.stdout


def test_every_optimizer_resumes_bit_for_bit_in_new_processes(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """Each strategy from each of four positions, and with all cases each of every optimizer.

    Two optimizers also where averages are under way.
    """
    every = pytestconfig.getoption("all_cases")
    for command in ("save", "resume"):
        run(2, "resume_cases.py", command, str(tmp_path), *["all"] * every)
    paced = 2 * 2 * (4 if every else 2)  # optimizers, paces, positions
    cases = len(INNER) * len(STRATEGIES) * 4 if every else len(INNER)
    for rank in range(2):
        report = json.loads((tmp_path / f"resume.{rank}").read_text())
        assert report == {"resumed": cases + paced, "parted": []}


def test_saved_by_two_ranks_and_resumed_by_any_number_in_every_order(tmp_path: Path) -> None:
    """Loaded on rank 0 alone, then broadcast.

    By hand: x = 1 and u = 1 after a window of lr 1 in which gradients averaged to 1/2.
    Then each worker takes two steps with gradient 0: x = 1 - 1/2 u = 1/2, on however many ranks.
    """
    run(2, "resume_on_others.py", "save", str(tmp_path))
    for ranks in (1, 3):
        run(ranks, "resume_on_others.py", "resume", str(tmp_path))
        reports = [json.loads((tmp_path / f"{ranks}.{rank}").read_text()) for rank in range(ranks)]
        assert reports == [[{"steps": 4, "in the end": 0.5}] * 3] * ranks
