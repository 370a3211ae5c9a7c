"""The wheel and the source archive hold the whole package, and train without the checkout."""

import tarfile
from pathlib import Path
from sys import executable

import pytest
from launch import HOROVODRUN, ROOT, run

SCRIPT = """\
import importlib, pathlib
import torch
import slowmo_hvd
import slowmo_hvd.torch as hvd

package = pathlib.Path(slowmo_hvd.__file__).parent
for path in package.rglob("*.py"):
    name = ".".join(path.relative_to(package.parent).with_suffix("").parts)
    if not any(part in name for part in ("tensorflow", "keras", "__")):  # of one framework
        importlib.import_module(name)
hvd.init()
weight = torch.nn.Parameter(torch.tensor([float(hvd.rank())]))
optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), sync_period=2)
for _ in range(2):
    weight.grad = torch.ones(1) * (1 + hvd.rank())
    optimizer.step()
print(f"at {weight.item():g} from {slowmo_hvd.__file__}")
"""


def made(kind: str, folder: Path) -> Path:
    """The archive of this kind."""
    command = [
        executable,
        "-m",
        "build",
        f"--{kind}",
        "--no-isolation",
        "-o",
        str(folder),
        str(ROOT),
    ]
    result = run(command, timeout=120)
    assert result.returncode == 0, result.stdout
    (archive,) = folder.glob("slowmo_hvd-*")
    return archive


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_two_workers_train_with_what_is_installed_from_it(kind: str, tmp_path: Path) -> None:
    archive = made(kind, tmp_path / "dist")
    target = tmp_path / "target"
    install = [executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    result = run([*install, "--target", str(target), str(archive)], timeout=120)
    assert result.returncode == 0, result.stdout
    assert (target / "slowmo_hvd" / "py.typed").exists()
    (tmp_path / "script.py").write_text(SCRIPT)
    options = ["--gloo", "--disable-cache", "-np", "2", executable, "script.py"]
    environment = {"PYTHONPATH": str(target)}
    result = run([*HOROVODRUN, *options], cwd=tmp_path, env=environment)
    # Both began at rank 0's weight, 0, and went by 2 and 4.
    assert result.stdout.count(f"at -3 from {target}") == 2, result.stdout


def test_the_source_archive_can_be_tested(tmp_path: Path) -> None:
    with tarfile.open(made("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for needed in ("README.md", "LICENSE", "pyproject.toml", "slowmo_hvd/py.typed"):
        assert needed in names
