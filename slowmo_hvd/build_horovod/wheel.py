"""Fetches Horovod's source archive and builds a wheel from it."""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from . import cuda
from .cache import sha256
from .environment import Frameworks, job_count
from .errors import BuildError
from .patches import apply_all
from .process import run_logged

VERSION = "0.28.1"
ARCHIVE = f"horovod-{VERSION}.tar.gz"
ARCHIVE_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"

# What Horovod's setup.py imports or asks for. The upper bound is the newest that was tried.
_BUILD_REQUIREMENTS = (
    "setuptools>=70.1,<85",
    "wheel",
    "packaging",
    "cloudpickle",
    "psutil",
    "pyyaml",
    "cffi>=1.4.0",
)
_OLDEST_CMAKE = (3, 13)


def build_wheel(
    frameworks: Frameworks, choice: cuda.GpuChoice, *, archive: Path, log: Path, scratch: Path
) -> Path:
    """Builds a wheel for the given frameworks and returns its path.

    Args:
        frameworks: What to build for; they must be importable in this environment.
        choice: Whether to build with NCCL, and where it is.
        archive: Where the source archive is kept; it is fetched if it is not there.
        log: The file that all output goes to.
        scratch: An empty folder to work in.
    """
    python = make_build_environment(scratch / "environment", log)
    fetch_archive(archive, python, log)
    source = unpack(archive, scratch / "source")
    apply_all(source)
    temporary = scratch / "tmp"
    temporary.mkdir()
    variables = {
        **frameworks.build_variables(),
        **cuda.build_variables(choice, scratch / "nccl"),
        "TMPDIR": str(temporary),
    }
    out = scratch / "out"
    run_logged(
        # Without --no-clean, a failed build's log ends in a page about what pip removes. What it
        # leaves lies in TMPDIR, which goes with the scratch folder.
        [
            *(str(python), "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation"),
            *("--no-clean", "--no-cache-dir", "-w", str(out), str(source)),
        ],
        label="compiling Horovod",
        log=log,
        environment=build_environment(os.environ, variables, python.parent, job_count()),
        cwd=scratch,
    )
    return next(out.glob("*.whl"))


def build_environment(
    environ: Mapping[str, str], variables: Mapping[str, str], scripts: Path, jobs: int
) -> dict[str, str]:
    """The environment that Horovod's build runs in.

    Horovod's own variables that the caller happens to have set are left out: they would change the
    wheel without changing the cache's key. So are those that a `make` around this command hands
    down, whose job server is not for this build.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith("HOROVOD_") and name not in ("MFLAGS", "MAKELEVEL")
    }
    path = [str(scripts), environ.get("PATH", os.defpath)]
    if home := variables.get("HOROVOD_CUDA_HOME"):
        path.insert(1, str(Path(home) / "bin"))
    return {
        **kept,
        **variables,
        "PATH": os.pathsep.join(path),
        "MAKEFLAGS": f"-j{jobs}",
        # Horovod and Gloo use uint8_t and the like without the header that declares them. Up to
        # GCC 12 other headers brought it along; since then fewer do, and in GCC 15 hardly any.
        "CXXFLAGS": f"{environ.get('CXXFLAGS', '')} -include cstdint".strip(),
        # CMake 4 refuses the old versions that Horovod's and Gloo's files name, unless told this.
        "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
        # The import of TensorFlow that finds its headers prints to the output that CMake reads.
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def make_build_environment(folder: Path, log: Path) -> Path:
    """Makes a private environment with the build tools in it, and returns its Python.

    It sees all that is installed in the current environment, and what it installs itself stays out
    of there. It has no pip of its own: the current environment's serves.
    """
    run_logged(
        [sys.executable, "-m", "venv", "--without-pip", str(folder)],
        label="making a private build environment",
        log=log,
    )
    python = folder / "bin" / "python"
    query = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    purelib = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    # addsitedir, not a bare path: the current environment's own .pth files must count too.
    lines = [f"import site; site.addsitedir({path!r})\n" for path in package_folders(sys.path)]
    (Path(purelib) / "current_environment.pth").write_text("".join(lines), encoding="utf-8")
    requirements = [*_BUILD_REQUIREMENTS]
    if not has_cmake():
        requirements.append("cmake")
    _run_pip(
        [str(python), "-m", "pip", "install", *requirements],
        label="installing the build tools there",
        log=log,
    )
    return python


def package_folders(path: list[str]) -> list[str]:
    """Those entries of an import path that hold installed packages, made absolute."""
    folders = [Path(entry) for entry in path]
    return [
        str(folder.resolve())
        for folder in folders
        if folder.name in ("site-packages", "dist-packages") and folder.is_dir()
    ]


def has_cmake() -> bool:
    """Whether there is a CMake on the PATH that is new enough for Horovod."""
    try:
        run = subprocess.run(["cmake", "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return False
    found = re.search(r"version (\d+)\.(\d+)", run.stdout)
    return found is not None and (int(found[1]), int(found[2])) >= _OLDEST_CMAKE


def fetch_archive(archive: Path, python: Path, log: Path) -> None:
    """Fetches the source archive, unless it is there, and checks its hash in either case."""
    if archive.is_file() and sha256(archive) == ARCHIVE_SHA256:
        return
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix="fetching-") as scratch:
        requirement = Path(scratch) / "requirement.txt"
        requirement.write_text(f"horovod=={VERSION} --hash=sha256:{ARCHIVE_SHA256}\n")
        _run_pip(
            [
                *(str(python), "-m", "pip", "download", "--no-deps", "--no-binary", "horovod"),
                *("--no-build-isolation", "--require-hashes", "-r", str(requirement)),
                *("-d", scratch),
            ],
            label=f"fetching {ARCHIVE}",
            log=log,
        )
        fetched = Path(scratch) / ARCHIVE
        check_hash(fetched)
        os.replace(fetched, archive)


def check_hash(archive: Path) -> None:
    """Raises BuildError unless the archive is the one that the edits are made for."""
    actual = sha256(archive)
    if actual != ARCHIVE_SHA256:
        raise BuildError(
            f"{archive.name} is not what it should be: its SHA-256 is {actual}, "
            f"expected {ARCHIVE_SHA256}"
        )


def unpack(archive: Path, folder: Path) -> Path:
    """Unpacks the archive, whose hash was checked, and returns the folder of its sources."""
    check_hash(archive)
    with tarfile.open(archive) as tar:
        # Python before 3.12 may lack the filter; the archive's hash is known either way.
        if hasattr(tarfile, "data_filter"):
            tar.extraction_filter = tarfile.data_filter
        tar.extractall(folder)
    return folder / f"horovod-{VERSION}"


def _run_pip(command: list[str], *, label: str, log: Path) -> None:
    """Runs pip, and where the network is what failed says so in one sentence."""
    start = log.stat().st_size
    try:
        run_logged(command, label=label, log=log)
    except BuildError as error:
        output = log.read_bytes()[start:].decode("utf-8", errors="replace")
        if re.search(r"hash(es)? .*(mismatch|do not match)|DO NOT MATCH THE HASHES", output):
            raise BuildError(
                f"{label} failed: the archive that the package index offers does not have the "
                f"SHA-256 {ARCHIVE_SHA256}; see {log}"
            ) from error
        if is_offline(output):
            raise BuildError(
                f"{label} failed because the package index cannot be reached: is this machine "
                f"offline? ({log} has pip's words)"
            ) from error
        raise


def is_offline(output: str) -> bool:
    """Whether pip's output says that it could not reach its package index."""
    signs = (
        "Temporary failure in name resolution",
        "Name or service not known",
        "Failed to establish a new connection",
        "Connection refused",
        "Network is unreachable",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "ProxyError",
        # All that pip says once it has given up, where its retries are switched off.
        "(from versions: none)",
    )
    return any(sign in output for sign in signs)
