"""Saved by some processes, resumed by others, bit for bit."""

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


@pytest.mark.limit(300)
def test_every_optimizer_and_strategy_resumes_bit_for_bit_in_new_processes(tmp_path: Path) -> None:
    """From one of four positions each; ``resume_cases.py save FOLDER all`` is for all of them."""
    script = str(ROOT / "tests" / "tensorflow" / "resume_cases.py")
    for command in ("save", "resume"):
        done = horovodrun(2, script, command, str(tmp_path), timeout=140, env=ENV)
        assert done.returncode == 0, done.stdout
    for rank in range(2):
        report = json.loads((tmp_path / f"resume.{rank}").read_text())
        assert report == {"resumed": len(INNER) * len(STRATEGIES), "parted": []}
