"""The code on the site's pages runs, on two ranks: each page's Python blocks are one script.

``<!-- keras -->`` before a block puts it into another script of the page's, after Keras' preamble;
``<!-- shown -->`` says that it is a part of an example, which has a test of its own.
"""

import json
import re
from pathlib import Path

import pytest
from launch import ROOT, horovodrun

DOCS = ROOT / "docs"
_BLOCK = re.compile(
    r"^(?: *(?P<mark><!-- \w+ -->)\n)?(?P<indent> *)```python\n(?P<code>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)
PREAMBLES = {
    "torch": """\
import csv
import torch
from accelerate import Accelerator
from torch.nn import functional as F

import slowmo_hvd.torch as hvd

hvd.init()
torch.manual_seed(0)
inputs = torch.randn(5, 4)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
loader = [(torch.randn(5, 2, 2), torch.randint(3, (5,))) for _ in range(24)]
optimizer = sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
""",
    "wrapped": """\
optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
for images, labels in loader:
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
""",
    "keras": """\
import keras
import numpy as np
import tensorflow as tf

import slowmo_hvd.tensorflow.keras as hvd

hvd.init()
x, y = np.random.randn(60, 4).astype("float32"), np.random.randn(60, 3).astype("float32")
vx, vy = x, y
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
model.compile(hvd.DistributedOptimizer(keras.optimizers.SGD(0.01)), loss="mse")
""",
}
#: Pages whose optimizer is made in the page itself.
WRAPS_ITSELF = ("coming-from", "slow-links")


def script(page: Path, framework: str) -> str:
    """What of a page is to run, if anything."""
    marked = {"torch": None, "keras": "<!-- keras -->"}[framework]
    found = [match for match in _BLOCK.finditer(page.read_text()) if match["mark"] == marked]
    if not found:
        return ""
    code = "\n".join(
        "".join(line.removeprefix(match["indent"]) for line in match["code"].splitlines(True))
        for match in found
    )
    wraps = framework == "torch" and page.stem not in WRAPS_ITSELF
    return PREAMBLES[framework] + (PREAMBLES["wrapped"] if wraps else "") + code


def pages(framework: str) -> dict[str, str]:
    """The scripts of all pages that have one."""
    found = {page.stem: script(page, framework) for page in sorted(DOCS.rglob("*.md"))}
    return {name: code for name, code in found.items() if code}


#: Each script by itself, one after the other, since a start of two workers takes seconds.
RUN_ALL = """\
import json
from pathlib import Path

for name, code in json.loads(Path("scripts.json").read_text()).items():
    print(f"page {name}", flush=True)
    exec(compile(code, f"the code of docs/.../{name}.md", "exec"), {"__name__": "__main__"})
"""


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_the_pages_code_runs(framework: str, tmp_path: Path) -> None:
    scripts = pages(framework)
    assert len(scripts) >= 4
    (tmp_path / "scripts.json").write_text(json.dumps(scripts))
    (tmp_path / "script.py").write_text(RUN_ALL)
    result = horovodrun(2, "script.py", cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert [name for name in scripts if f"page {name}" not in result.stdout] == []
