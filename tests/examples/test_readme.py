"""README.md keeps its word: its code runs, and what it names is there.

Its blocks are one script, in the order of the page, run on two ranks: first the new side of the
diff, then every Python block. The old side of the diff runs too, on Horovod alone.
"""

import inspect
import re
from pathlib import Path

import pytest
import torch
from launch import ROOT, horovodrun

from slowmo_hvd.torch import DistributedOptimizer

README = re.sub("<!--.*?-->", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
# What the page leaves to the reader: a model and its data.
PREAMBLE = """\
import torch
from torch.nn import functional as F

torch.manual_seed(0)
make_model = lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
loader = [(torch.randn(5, 2, 2), torch.randint(3, (5,))) for _ in range(24)]
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def side(diff: str, sign: str) -> str:
    return "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] in f"{sign} \n")


def run(script: str, folder: Path) -> str:
    (folder / "script.py").write_text(PREAMBLE + script)
    result = horovodrun(2, "script.py", cwd=folder, timeout=100)
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.limit(110)
def test_the_script_before_the_diff_is_a_horovod_script(tmp_path: Path) -> None:
    (diff,) = blocks("diff")
    assert len(re.findall("^[+]", diff, re.MULTILINE)) == 2
    assert "slowmo" not in side(diff, "-")
    run(side(diff, "-"), tmp_path)


@pytest.mark.limit(110)
def test_the_code_runs_in_the_order_of_the_page(tmp_path: Path) -> None:
    (diff,) = blocks("diff")
    output = run("\n".join([side(diff, "+"), *blocks("python")]), tmp_path)
    assert re.search(r"step 48: drift 0\.\d+, \d+ bytes", output)
    assert output.count("SyncStats(syncs=4, ") == 2
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["optimizer"]["slowmo"]["step"] == 48


def test_the_table_of_arguments_has_every_one_and_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| `([^`]*)` \|", README, re.MULTILINE))
    parameters = inspect.signature(DistributedOptimizer).parameters.values()
    ours = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert {name: default.replace('"', "'") for name, default in rows.items()} == {
        name: repr(default) for name, default in ours.items()
    }


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([\w./-]+)\)", README))))
def test_what_it_links_to_is_there(path: str) -> None:
    assert (ROOT / path).exists()
