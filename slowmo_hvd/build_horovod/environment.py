"""What the current environment has: frameworks, tools to build with, cores and memory."""

import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from .errors import BuildError

TENSORFLOW_DISTRIBUTIONS = (
    "tensorflow",
    "tensorflow-cpu",
    "tensorflow-gpu",
    "tensorflow-rocm",
    "tensorflow-macos",
    "tensorflow-cpu-aws",
    "intel-tensorflow",
    "tf-nightly",
    "tf-nightly-cpu",
)

# What one compiler process takes at its peak, with today's framework headers.
JOB_MEMORY = 2 * 1024**3


@dataclass(frozen=True)
class Frameworks:
    """The versions of the frameworks that are installed; None stands for not installed.

    `tensorflow_cpu` tells a distribution named as a CPU build from any other.
    """

    torch: str | None
    tensorflow: str | None
    tensorflow_cpu: bool = False

    def names(self) -> tuple[str, ...]:
        """The frameworks' module names."""
        found = {"torch": self.torch, "tensorflow": self.tensorflow}
        return tuple(name for name, version in found.items() if version)

    def describe(self) -> str:
        """For example 'torch 2.13.0+cpu and TensorFlow 2.21.0'."""
        parts = []
        if self.torch:
            parts.append(f"torch {self.torch}")
        if self.tensorflow:
            parts.append(f"TensorFlow {self.tensorflow}")
        return " and ".join(parts)

    def build_variables(self) -> dict[str, str]:
        """The environment variables that tell Horovod's build what to build for.

        A framework that is installed is required, so a failure to find it stops the build instead
        of leaving it out; every other one is switched off.
        """
        return {
            "HOROVOD_WITH_PYTORCH" if self.torch else "HOROVOD_WITHOUT_PYTORCH": "1",
            "HOROVOD_WITH_TENSORFLOW" if self.tensorflow else "HOROVOD_WITHOUT_TENSORFLOW": "1",
            "HOROVOD_WITHOUT_MXNET": "1",
            "HOROVOD_WITH_GLOO": "1",
            "HOROVOD_WITHOUT_MPI": "1",
        }


def installed_version(distribution: str) -> str | None:
    """The installed version of a distribution, read from its metadata, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def find_frameworks(
    version_of: Callable[[str], str | None] = installed_version,
) -> Frameworks:
    """The frameworks of this environment; raises BuildError if there is none."""
    tensorflow, cpu = None, False
    for distribution in TENSORFLOW_DISTRIBUTIONS:
        tensorflow = version_of(distribution)
        if tensorflow:
            cpu = "cpu" in distribution
            break
    frameworks = Frameworks(torch=version_of("torch"), tensorflow=tensorflow, tensorflow_cpu=cpu)
    if not frameworks.names():
        raise BuildError(
            f"neither torch nor tensorflow is installed for {sys.executable}: "
            "install one of them first (Horovod is built for the frameworks it finds)"
        )
    return frameworks


def python_tag() -> str:
    """This interpreter and machine as the cache's key names them, e.g. 'cp311-linux_x86_64'."""
    version = f"{sys.version_info.major}{sys.version_info.minor}"
    implementation = {"cpython": "cp"}.get(sys.implementation.name, sys.implementation.name)
    abi = getattr(sys, "abiflags", "")
    return f"{implementation}{version}{abi}-{platform.system().lower()}_{platform.machine()}"


def require_tools(
    which: Callable[[str], str | None] = shutil.which,
    include: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Raises BuildError, naming the package to install, if something to build with is missing."""
    chosen = environ.get("CXX", "").split()
    compilers = chosen[:1] or ["c++", "g++", "clang++"]
    if not any(which(compiler) for compiler in compilers):
        raise BuildError(
            f"no C++ compiler found (looked for {', '.join(compilers)}): apt-get install g++"
        )
    if not any(which(make) for make in ("gmake", "make")):
        raise BuildError("no make found: apt-get install make")
    include = include or Path(sysconfig.get_path("include"))
    if not (include / "Python.h").is_file():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise BuildError(
            f"the header Python.h of Python {version} is missing ({include}): "
            f"apt-get install python3-dev (python{version}-dev if {version} is not the default)"
        )


def require_pip(find_spec: Callable[[str], object] = importlib.util.find_spec) -> None:
    """Raises BuildError if this environment has no pip."""
    if find_spec("pip") is None:
        raise BuildError(
            f"{sys.executable} has no pip: run `python -m ensurepip`, or where that is missing "
            "apt-get install python3-venv and make the environment anew"
        )


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory that can still be used, the control group's limit included, or None."""
    limits = []
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
        limits.append(int((root / "sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        pass  # Not Linux, or no limit ("max"): what was found so far counts.
    return min(limits, default=None)


def job_count() -> int:
    """How many compilers to run at once: one a core, and no more than memory has room for."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    memory = available_memory()
    return cores if memory is None else max(1, min(cores, memory // JOB_MEMORY))
