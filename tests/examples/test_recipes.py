"""The recipes for other libraries' trainers and launchers, by what they achieve on two workers."""

import csv
import importlib.util
import re
from pathlib import Path
from sys import executable

import pytest
from launch import ROOT, horovodrun, run


def recipe(name: str, folder: Path, *arguments: str) -> str:
    result = horovodrun(2, str(ROOT / "examples" / name), *arguments, cwd=folder)
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_lightning_learns_and_rank_0_alone_saves(tmp_path: Path) -> None:
    output = recipe("torch_lightning.py", tmp_path, "--epochs", "6")
    (accuracy,) = re.findall(r"accuracy (\S+)%", output)
    assert float(accuracy) > 90
    assert len(list(tmp_path.rglob("*.ckpt"))) == 1


def test_hugging_faces_trainer_evaluates_one_model_on_all_ranks(tmp_path: Path) -> None:
    output = recipe("torch_hugging_face.py", tmp_path, "--steps", "60")
    (losses,) = re.findall(r"evaluation loss \[(\S+), (\S+)\]", output)
    assert losses[0] == losses[1]
    assert float(losses[0]) < 3.5  # 5.5 is to know nothing
    assert "[0]<stdout>:{'eval_loss'" in output
    assert "[1]<stdout>:{" not in output  # rank 1 keeps silent
    assert [path.name for path in tmp_path.glob("hugging_face_run/*")] == ["checkpoint-60"]


def test_keras_callbacks_work_together_and_a_run_goes_on(tmp_path: Path) -> None:
    first = recipe("keras_callbacks.py", tmp_path, "--epochs", "6")
    assert "Epoch 6/6" in first
    made = {path.name for path in (tmp_path / "keras_run").iterdir()}
    assert made == {"best.keras", "logs"}  # the backup is gone with the end of training


def test_a_healthy_run_and_three_that_are_not_are_drawn(tmp_path: Path) -> None:
    output = recipe("sick_runs.py", tmp_path, "--epochs", "2")
    assert "drawn" in output
    files = sorted((tmp_path / "sick_runs").iterdir())
    assert [file.name for file in files] == ["0.csv", "1.csv", "2.csv", "3.csv"]
    with files[0].open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4  # of 2 × 28 steps, 12 a window
    assert (tmp_path / "sick_runs.png").stat().st_size > 10_000


@pytest.mark.parametrize("launcher", ["ray", "pyspark"])
def test_other_launchers_workers_end_with_one_model(launcher: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(launcher) is None:
        pytest.skip(f"{launcher} is not installed: it is no requirement of the tests")
    name = {"ray": "torch_ray.py", "pyspark": "torch_spark.py"}[launcher]
    script = [executable, str(ROOT / "examples" / name), "--epochs", "3"]
    result = run(script, cwd=tmp_path, timeout=120)
    assert result.returncode == 0, result.stdout
    assert "rank 1" in result.stdout
