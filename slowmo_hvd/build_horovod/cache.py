"""The cache of built wheels: one folder a key, a wheel with its SHA-256 beside it."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from .environment import Frameworks
from .patches import PATCH_LEVEL
from .process import say


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """$XDG_CACHE_HOME/slowmo_hvd, or ~/.cache/slowmo_hvd where that is unset or not absolute."""
    base = Path(environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        base = Path.home() / ".cache"
    return base / "slowmo_hvd"


def cache_key(version: str, python: str, frameworks: Frameworks, gpu: str) -> str:
    """Names all that a wheel of Horovod `version` depends on.

    For example 'horovod0.28.1-cp311-linux_x86_64-torch2.13.0+cpu-tf2.21.0-cpu-p1'.
    """
    parts = [f"horovod{version}", python]
    if frameworks.torch:
        parts.append(f"torch{frameworks.torch}")
    if frameworks.tensorflow:
        parts.append(f"tf{frameworks.tensorflow}")
    return "-".join([*parts, gpu, f"p{PATCH_LEVEL}"])


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def find_wheel(folder: Path) -> Path | None:
    """The wheel in a key's folder, if it is there whole; a damaged one is as good as none."""
    for wheel in sorted(folder.glob("*.whl")):
        recorded = _sum_file(wheel)
        if recorded.is_file() and recorded.read_text().strip() == sha256(wheel):
            return wheel
        say(f"the cached wheel {wheel} is damaged and will be built anew")
    return None


def store_wheel(built: Path, folder: Path) -> Path:
    """Puts a wheel into a key's folder, as the only one, so that no reader ever sees half of it."""
    wheel = folder / built.name
    with tempfile.TemporaryDirectory(dir=folder, prefix="storing-") as scratch:
        copy = Path(scratch) / built.name
        shutil.copyfile(built, copy)
        recorded = Path(scratch) / "sum"
        recorded.write_text(sha256(copy) + "\n")
        for old in set(folder.glob("*.whl")) - {wheel}:
            old.unlink()
            _sum_file(old).unlink(missing_ok=True)
        # Between these two lines the sum does not fit, which reads as damaged: a rebuild, no harm.
        os.replace(copy, wheel)
        os.replace(recorded, _sum_file(wheel))
    return wheel


def cached_wheel(folder: Path, build: Callable[[], Path], *, force: bool = False) -> Path:
    """The wheel in a key's folder; calls `build`, which returns a wheel's path, if it must.

    Two processes that want the same wheel do not both build it: the second waits for the first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / "lock"):
        wheel = None if force else find_wheel(folder)
        if wheel:
            say(f"taking the cached wheel {wheel}")
            return wheel
        return store_wheel(build(), folder)


def _sum_file(wheel: Path) -> Path:
    return wheel.with_name(wheel.name + ".sha256")


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another build of the same wheel")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
