"""The diffs of docs/migrating.md keep their word, and README.md has the first of them.

The new side of each is a script that runs, on two ranks. The old side of PyTorch's runs too, on
Horovod alone; Keras' and that of the tape no longer do. What a page leaves to the reader, a model,
its data and the loop around a tape, is here.
"""

import inspect
import re
from pathlib import Path

import pytest
from launch import ROOT, horovodrun

from slowmo_hvd.torch import DistributedOptimizer

README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs" / "migrating.md").read_text()
ARGUMENTS = (ROOT / "docs" / "reference" / "arguments.md").read_text()
# What the page leaves to the reader: a model and its data.
PREAMBLE = """\
import torch
from torch.nn import functional as F

torch.manual_seed(0)
make_model = lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
loader = [(torch.randn(5, 2, 2), torch.randint(3, (5,))) for _ in range(24)]
"""
KERAS_PREAMBLE = """\
import keras
import numpy as np
import tensorflow as tf

x, y = np.random.randn(60, 4).astype("float32"), np.random.randn(60, 3).astype("float32")
make_keras_model = lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
"""
TAPE_LOOP = """
model = make_keras_model()
hvd.broadcast_variables([v.value for v in model.variables], root_rank=0)  # as Horovod takes them
for _ in range(12):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(x) - y) ** 2)
"""  # 12 steps: one window
KERAS_END = """
import horovod.tensorflow
weights = horovod.tensorflow.allgather_object([w.tolist() for w in model.get_weights()])
print("one model:", weights[0] == weights[1])
"""


def diffs(page: str) -> list[str]:
    """The page's diffs, without their indentation."""
    found = re.finditer(r"^( *)```diff\n(.*?)^ *```$", page, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{match[1]}", "", match[2], flags=re.MULTILINE) for match in found]


def side(diff: str, sign: str) -> str:
    return "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] in f"{sign} \n")


def run(script: str, folder: Path, *, succeeds: bool = True) -> str:
    (folder / "script.py").write_text(script)
    result = horovodrun(2, "script.py", cwd=folder)
    assert (result.returncode == 0) is succeeds, result.stdout
    return result.stdout


def test_the_script_before_the_diff_is_a_horovod_script(tmp_path: Path) -> None:
    diff, *_ = diffs(PAGE)
    assert len(re.findall("^[+]", diff, re.MULTILINE)) == 2
    assert "slowmo" not in side(diff, "-")
    run(PREAMBLE + side(diff, "-"), tmp_path)


def test_the_script_after_the_diff_ends_with_one_model(tmp_path: Path) -> None:
    diff, *_ = diffs(PAGE)
    end = (
        "\nweight = next(model.parameters()).tolist()\nprint('one:', hvd.allgather_object(weight))"
    )
    first, second = re.findall(r"one: \[(.*)\]", run(PREAMBLE + side(diff, "+") + end, tmp_path))
    assert first == second
    ours, theirs = first.split("]], [[")
    assert ours.strip("[]") == theirs.strip("[]")


def test_the_readme_has_the_first_of_these_diffs() -> None:
    assert diffs(README) == diffs(PAGE)[:1]


def test_the_keras_script_needs_two_lines_and_ends_with_one_model(tmp_path: Path) -> None:
    _, diff, _ = diffs(PAGE)
    assert len(re.findall("^[+]", diff, re.MULTILINE)) == 2
    output = run(KERAS_PREAMBLE + side(diff, "+") + KERAS_END, tmp_path)
    assert output.count("one model: True") == 2


@pytest.mark.only_all_cases
def test_the_keras_script_before_the_diff_no_longer_runs(tmp_path: Path) -> None:
    _, diff, _ = diffs(PAGE)
    output = run(KERAS_PREAMBLE + side(diff, "-"), tmp_path, succeeds=False)
    assert "horovod/_keras/callbacks.py" in output  # it is Horovod's own callback that raises


def tape_script(sign: str) -> str:
    *_, diff = diffs(PAGE)
    assert len(re.findall("^[+]", diff, re.MULTILINE)) == 2
    imports, optimizer, *body = side(diff, sign).splitlines()
    return "\n".join(
        [KERAS_PREAMBLE, imports, "hvd.init()", optimizer, TAPE_LOOP, *body, KERAS_END]
    )


def test_the_script_around_a_tape_needs_two_lines_and_ends_with_one_model(tmp_path: Path) -> None:
    assert run(tape_script("+"), tmp_path).count("one model: True") == 2


@pytest.mark.only_all_cases
def test_the_script_around_a_tape_before_the_diff_no_longer_runs(tmp_path: Path) -> None:
    output = run(tape_script("-"), tmp_path, succeeds=False)
    assert "'Variable' object has no attribute 'ref'" in output  # Horovod's tape, of Keras 3's


def test_the_table_of_arguments_has_every_one_and_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| `([^`]*)` \|", ARGUMENTS, re.MULTILINE))
    parameters = inspect.signature(DistributedOptimizer).parameters.values()
    ours = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert {name: default.replace('"', "'") for name, default in rows.items()} == {
        name: repr(default) for name, default in ours.items()
    }


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([\w./-]+)\)", README))))
def test_what_it_links_to_is_there(path: str) -> None:
    assert (ROOT / path).exists()
