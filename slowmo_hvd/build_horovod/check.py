"""Installs a built wheel and checks that what was installed imports and allreduces."""

import json
import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from .cache import sha256
from .cuda import GpuChoice
from .environment import Frameworks
from .process import run_logged, say

_TIME_LIMIT = 300.0

# horovod.torch only prints a warning when its library cannot be loaded, so ask the library.
_IMPORT = """
import horovod.{framework} as hvd
assert hvd.gloo_built(), "built without Gloo"
assert bool(hvd.nccl_built()) == {nccl}, "NCCL should be {nccl}, is %r" % hvd.nccl_built()
"""

# Rank r contributes r + 1: with two ranks the sum is 3.
_ALLREDUCE = {
    "torch": """
import torch
import horovod.torch as hvd
hvd.init()
device = {device}
total = hvd.allreduce(torch.tensor([hvd.rank() + 1.0], device=device), op=hvd.Sum, name="check")
expected = hvd.size() * (hvd.size() + 1) / 2
assert hvd.size() == {ranks} and total.item() == expected, (hvd.size(), total)
hvd.shutdown()
""",
    "tensorflow": """
import tensorflow as tf
import horovod.tensorflow as hvd
hvd.init()
total = hvd.allreduce(tf.constant([hvd.rank() + 1.0]), op=hvd.Sum, name="check")
expected = hvd.size() * (hvd.size() + 1) / 2
assert hvd.size() == {ranks} and float(total[0]) == expected, (hvd.size(), total)
hvd.shutdown()
""",
}


def install(wheel: Path, log: Path) -> None:
    """Installs the wheel, and what it requires, unless this very wheel is installed already."""
    if installed_sum() == sha256(wheel):
        say("this wheel is installed already")
        return
    pip = [sys.executable, "-m", "pip", "install"]
    # Two wheels of one version: pip takes the second for the first unless it is forced, and what
    # the wheel requires must not be forced.
    run_logged(
        [*pip, "--force-reinstall", "--no-deps", str(wheel)], label="installing Horovod", log=log
    )
    run_logged([*pip, str(wheel)], label="installing what Horovod requires", log=log)


def installed_sum() -> str | None:
    """The SHA-256 of the wheel that the installed Horovod came from, if pip has noted it."""
    try:
        noted = metadata.distribution("horovod").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    archive = json.loads(noted or "{}").get("archive_info", {})
    kind, _, value = str(archive.get("hash", "")).partition("=")
    return value if kind == "sha256" else None


def check(frameworks: Frameworks, choice: GpuChoice, log: Path) -> None:
    """Raises BuildError unless every framework's Horovod imports and allreduces on two ranks."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HOROVOD_")},
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    # An empty folder to run in, so that no module of the caller's folder is imported instead.
    with tempfile.TemporaryDirectory(prefix="slowmo_hvd-check-") as scratch:

        def run(command: list[str], label: str) -> None:
            run_logged(
                command,
                label=label,
                log=log,
                environment=environment,
                cwd=Path(scratch),
                time_limit=_TIME_LIMIT,
            )

        for framework in frameworks.names():
            nccl = choice.with_nccl and framework == "torch"
            program = _IMPORT.format(framework=framework, nccl=nccl)
            run([sys.executable, "-c", program], f"importing horovod.{framework}")
            program = _ALLREDUCE[framework].format(ranks=2, device="'cpu'")
            run(_horovodrun(2, program), f"an allreduce of {framework} on 2 ranks")
        gpus = len(choice.torch_cuda.capabilities) if choice.torch_cuda else 0
        if choice.with_nccl and gpus:
            # NCCL allows one rank a GPU; one rank is enough to see that it starts.
            program = _ALLREDUCE["torch"].format(ranks=1, device="'cuda'")
            run(_horovodrun(1, program), "an allreduce over NCCL on 1 rank")


def _horovodrun(ranks: int, program: str) -> list[str]:
    options = ["--gloo", "--disable-cache", "-np", str(ranks)]  # no ~/.horovod
    launcher = [sys.executable, "-m", "horovod.runner.launch", *options]
    return [*launcher, sys.executable, "-c", program]
