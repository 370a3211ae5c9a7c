"""Whether to build with NCCL, and with which CUDA toolkit and NCCL; every answer has its reason."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from .environment import Frameworks
from .errors import BuildError

# Runs in a process of its own, because importing torch is slow and may claim a GPU.
_TORCH_PROBE = """
import json, torch
cuda = torch.version.cuda
count = torch.cuda.device_count() if cuda else 0
present = [torch.cuda.get_device_capability(i) for i in range(count)]
print(json.dumps({"cuda": cuda, "present": present}))
"""


@dataclass(frozen=True)
class TorchCuda:
    """The CUDA version torch was built with, and the capabilities of the GPUs it sees ('90')."""

    version: str
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: its folder, with bin/nvcc in it, and its version ('13.0')."""

    home: Path
    version: str


@dataclass(frozen=True)
class Nccl:
    """The folder of nccl.h and the path of the shared library."""

    include: Path
    library: Path


@dataclass(frozen=True)
class GpuChoice:
    """The decision: NCCL if `toolkit` and `nccl` are there, else CPU; `reason` is one line."""

    reason: str
    torch_cuda: TorchCuda | None = None
    toolkit: Toolkit | None = None
    nccl: Nccl | None = None

    @property
    def with_nccl(self) -> bool:
        """Whether Horovod is to be built with NCCL."""
        return self.toolkit is not None and self.nccl is not None

    def tag(self) -> str:
        """What the cache's key says: 'cpu', or for example 'nccl-cuda13.0-sm90'."""
        if self.toolkit is None or self.torch_cuda is None:
            return "cpu"
        capabilities = [f"sm{capability}" for capability in self.torch_cuda.capabilities]
        return "-".join([f"nccl-cuda{self.toolkit.version}", *(capabilities or ["allgpus"])])


def choose(
    frameworks: Frameworks,
    *,
    cpu_only: bool,
    torch_cuda: TorchCuda | None,
    toolkit: Toolkit | None,
    nccl: Nccl | None,
) -> GpuChoice:
    """Decides between NCCL and the CPU from what was found."""

    def cpu(reason: str) -> GpuChoice:
        return GpuChoice(f"for the CPU: {reason}")

    if cpu_only:
        return cpu("--cpu was given")
    if not frameworks.torch:
        return cpu("NCCL is built for torch only, and torch is not installed")
    if torch_cuda is None:
        return cpu(f"torch {frameworks.torch} is a build without CUDA")
    if frameworks.tensorflow:
        return cpu(
            "Horovod 0.28.1 cannot be compiled with CUDA for today's TensorFlow; "
            "for NCCL use an environment with torch alone"
        )
    if toolkit is None:
        return cpu(
            f"torch has CUDA {torch_cuda.version}, but no CUDA toolkit was found "
            "(put nvcc on the PATH or set CUDA_HOME)"
        )
    if _major(toolkit.version) != _major(torch_cuda.version):
        return cpu(
            f"torch has CUDA {torch_cuda.version}, but the toolkit in {toolkit.home} is "
            f"{toolkit.version}"
        )
    if nccl is None:
        return cpu(
            f"no NCCL was found: install nvidia-nccl-cu{_major(torch_cuda.version)} "
            "or set NCCL_HOME"
        )
    return GpuChoice(
        f"with NCCL: torch has CUDA {torch_cuda.version}, the toolkit is in {toolkit.home}, "
        f"NCCL is {nccl.library}",
        torch_cuda,
        toolkit,
        nccl,
    )


def find(frameworks: Frameworks, *, cpu_only: bool) -> GpuChoice:
    """Looks at torch, the toolkit and NCCL, no further than it takes, and decides."""
    torch_cuda = None
    if frameworks.torch and not cpu_only:
        torch_cuda = probe_torch(frameworks.torch)
    toolkit = find_toolkit() if torch_cuda else None
    nccl = find_nccl(nccl_homes(toolkit)) if toolkit else None
    return choose(frameworks, cpu_only=cpu_only, torch_cuda=torch_cuda, toolkit=toolkit, nccl=nccl)


def probe_torch(version: str) -> TorchCuda | None:
    """Asks the installed torch about CUDA, in a process of its own; None is a build without it."""
    if version.endswith("+cpu"):
        return None
    run = subprocess.run(
        [sys.executable, "-c", _TORCH_PROBE], capture_output=True, text=True, check=False
    )
    if run.returncode != 0:
        last = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise BuildError(f"the installed torch {version} cannot be imported: {last}")
    answer = json.loads(run.stdout.strip().splitlines()[-1])
    if answer["cuda"] is None:
        return None
    capabilities = sorted({major * 10 + minor for major, minor in answer["present"]})
    return TorchCuda(answer["cuda"], tuple(str(capability) for capability in capabilities))


def find_toolkit(environ: Mapping[str, str] = os.environ) -> Toolkit | None:
    """The first whole CUDA toolkit: the environment's, the PATH's, /usr/local/cuda.

    Whole means that its nvcc answers and that the runtime's header is there: what is on the PATH
    may be a script that calls an nvcc elsewhere.
    """
    homes = [environ.get(name) for name in ("HOROVOD_CUDA_HOME", "CUDA_HOME", "CUDA_PATH")]
    nvcc = shutil.which("nvcc", path=environ.get("PATH"))
    if nvcc:
        homes.append(str(Path(nvcc).resolve().parent.parent))
    homes.append("/usr/local/cuda")
    for home in homes:
        if not home or not (Path(home) / "include" / "cuda_runtime.h").is_file():
            continue
        if version := nvcc_version(Path(home)):
            return Toolkit(Path(home), version)
    return None


def nvcc_version(home: Path) -> str | None:
    """The release that home/bin/nvcc names ('13.0'), or None."""
    try:
        run = subprocess.run(
            [home / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    found = re.search(r"release (\d+\.\d+)", run.stdout)
    return found.group(1) if found else None


def nccl_homes(toolkit: Toolkit | None, environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Where to look for NCCL: the environment's word, torch's own package, the toolkit, /usr."""
    homes = [
        Path(environ[name]) for name in ("HOROVOD_NCCL_HOME", "NCCL_HOME") if environ.get(name)
    ]
    for distribution in metadata.distributions():
        if (distribution.metadata["Name"] or "").startswith("nvidia-nccl-cu"):
            homes.append(Path(str(distribution.locate_file("nvidia/nccl"))))
    if toolkit:
        homes.append(toolkit.home)
    return [*homes, Path("/usr")]


def find_nccl(homes: Iterable[Path]) -> Nccl | None:
    """The first of the folders that has both the header and the shared library."""
    for home in homes:
        include = home / "include"
        if not (include / "nccl.h").is_file():
            continue
        for pattern in ("lib/libnccl.so*", "lib64/libnccl.so*", "lib/*/libnccl.so*"):
            if libraries := sorted(home.glob(pattern)):
                return Nccl(include, libraries[0])
    return None


def build_variables(choice: GpuChoice, link_home: Path) -> dict[str, str]:
    """The environment variables for Horovod's build; makes the folder `link_home` if NCCL is used.

    The NCCL package carries libnccl.so.2 alone, and the linker looks for libnccl.so: `link_home`
    gets a link of that name. At run time the library is found by the path written into what is
    built, or, in an environment elsewhere, because torch has loaded it already.
    """
    if choice.toolkit is None or choice.nccl is None or choice.torch_cuda is None:
        return {"HOROVOD_WITHOUT_CUDA": "1"}
    (link_home / "lib").mkdir(parents=True)
    (link_home / "include").symlink_to(choice.nccl.include)
    (link_home / "lib" / "libnccl.so").symlink_to(choice.nccl.library)
    rpath = f"-Wl,-rpath,{choice.nccl.library.parent}"
    variables = {
        "HOROVOD_GPU_OPERATIONS": "NCCL",
        "HOROVOD_CUDA_HOME": str(choice.toolkit.home),
        "HOROVOD_NCCL_HOME": str(link_home),
        "HOROVOD_NCCL_LINK": "SHARED",
        "CUDA_HOME": str(choice.toolkit.home),
        "LDFLAGS": f"{os.environ.get('LDFLAGS', '')} {rpath}".strip(),
    }
    if choice.torch_cuda.capabilities:
        variables["HOROVOD_BUILD_CUDA_CC_LIST"] = ",".join(choice.torch_cuda.capabilities)
    return variables


def _major(version: str) -> str:
    return version.split(".")[0]
