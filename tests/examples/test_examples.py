"""The examples and the demo, each with a small budget, by what they achieve."""

import re
from pathlib import Path
from sys import executable

import pytest
import torch
from launch import horovodrun, run


def example(name: str, *arguments: str, succeeds: bool = True) -> str:
    result = horovodrun(2, f"examples/{name}", *arguments)
    assert (result.returncode == 0) is succeeds, result.stdout
    return result.stdout


def figures(pattern: str, output: str) -> list[float]:
    return [float(figure) for figure in re.findall(pattern, output)]


def test_digits_are_learnt() -> None:
    output = example("torch_digits.py", "--epochs", "10")
    losses = figures(r"loss (\S+)", output)
    assert len(losses) == 10
    assert losses[-1] < 0.2 < 2 < losses[0]
    assert figures(r"accuracy (\S+)%", output)[-1] > 90


def test_digits_are_learnt_with_keras_fit(tmp_path: Path) -> None:
    saved = tmp_path / "digits.keras"
    output = example("keras_digits.py", "--epochs", "10", "--save", str(saved))
    losses = figures(r" loss: (\S+) ", output)
    assert len(losses) == 10
    assert losses[-1] < 0.2 < 2 < losses[0]
    assert figures(r"val_accuracy: (\S+)", output)[-1] > 0.9
    assert "syncs" in output
    assert saved.stat().st_size > 50_000


def test_digits_are_learnt_with_a_gradient_tape() -> None:
    output = example("tensorflow_digits.py", "--epochs", "10")
    losses = figures(r"loss (\S+)", output)
    assert len(losses) == 10
    assert losses[-1] < 0.2 < 2 < losses[0]
    assert figures(r"accuracy (\S+)%", output)[-1] > 90


def test_the_language_model_learns_what_python_looks_like() -> None:
    output = example("torch_language_model.py", "--steps", "100", "--width", "48", "--layers", "1")
    (bits,) = figures(r"test (\S+) bits", output)
    assert bits < 4.6  # what knowing how often each byte occurs would give


def test_a_run_that_was_killed_ends_with_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    def resume(name: str, *arguments: str, succeeds: bool = True) -> str:
        options = ["--epochs", "4", "--checkpoint", str(tmp_path / name)]
        return example("torch_resume.py", *options, *arguments, succeeds=succeeds)

    whole = resume("whole.pt")
    resume("parts.pt", "--die-at-step", "70", succeeds=False)
    resumed = resume("parts.pt")
    assert "resuming after epoch 2, step 58" in resumed
    assert "epoch  4  step  116" in resumed
    assert "epoch  2" not in resumed
    assert figures(r"loss (\S+)", resumed) == figures(r"loss (\S+)", whole)[2:]

    expected, actual = (
        torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "parts.pt")
    )
    assert actual["progress"] == expected["progress"]
    assert actual["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]
    for ours, theirs in (
        (actual["model"], expected["model"]),
        *(
            (actual["optimizer"]["slowmo"][name], expected["optimizer"]["slowmo"][name])
            for name in ("step", "window", "position", "anchor", "momentum")
        ),
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_the_demo_ends_with_a_table_for_each_framework_and_a_plot(tmp_path: Path) -> None:
    plot = tmp_path / "demo.png"
    small = ["--seeds", "1", "--epochs", "4", "--slow-momentum", "0.5", "--plot", str(plot)]
    result = run([executable, "examples/demo.py", *small])
    assert result.returncode == 0, result.stdout
    rows = re.findall(r"^(\S.*?)  +(\S+)  +(\S+)  +(\S+)  +(\S+)  +(\S+)$", result.stdout, re.M)
    table = [(name, [float(figure) for figure in row]) for name, *row in rows]
    slowmo = ["Local SGD", "SlowMo β=0.5"]
    assert [name for name, _ in table] == ["Horovod's own", *slowmo, "gradient averaging", *slowmo]
    for _, (accuracy, loss, seconds, _, _) in table:
        assert accuracy > 15
        assert 0 < loss < 2.3
        assert seconds > 0
    assert [row[3] for _, row in table] == [76, 7, 7] * 2
    for (_, own), (_, local), (_, slow) in (table[:3], table[3:]):
        assert own[4] == pytest.approx(76 * 13706 * 4 / 1e6, abs=0.01)
        assert local[4] == slow[4] == pytest.approx(7 * 13706 * 4 / 1e6, abs=0.01)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert str(plot) in result.stdout
