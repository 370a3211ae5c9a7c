"""The command `python -m slowmo_hvd.build_horovod`."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from . import cuda
from .cache import cache_folder, cache_key, cached_wheel, store_wheel
from .check import check, install
from .environment import find_frameworks, python_tag, require_pip, require_tools
from .errors import BuildError
from .process import duration, say
from .wheel import ARCHIVE, VERSION, build_wheel


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = _parse(arguments)
    try:
        if options.tools:
            require_tools()
        else:
            _build_and_install(options)
    except BuildError as error:
        print(f"build_horovod: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbuild_horovod: interrupted", file=sys.stderr)
        return 130
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m slowmo_hvd.build_horovod",
        description=(
            f"Builds Horovod {VERSION} for the frameworks installed in this environment (torch, "
            "TensorFlow or both), installs it here, and checks that it allreduces. The wheel is "
            "kept in $XDG_CACHE_HOME/slowmo_hvd (or ~/.cache/slowmo_hvd) and taken from there the "
            "next time."
        ),
    )
    parser.add_argument(
        "--cpu", action="store_true", help="build without CUDA and NCCL, whatever is there"
    )
    parser.add_argument(
        "--force", action="store_true", help="build even if the cache has the wheel"
    )
    parser.add_argument(
        "--no-install", action="store_true", help="stop when the wheel is in the cache"
    )
    parser.add_argument(
        "--wheelhouse",
        type=Path,
        metavar="DIR",
        help="also leave the wheel there, for other machines",
    )
    parser.add_argument(
        "--tools",
        action="store_true",
        help="only check that a C++ compiler, make and Python's headers are there",
    )
    return parser.parse_args(arguments)


def _build_and_install(options: argparse.Namespace) -> None:
    started = time.monotonic()
    require_pip()
    frameworks = find_frameworks()
    choice = cuda.find(frameworks, cpu_only=options.cpu)
    say(f"Horovod {VERSION} for {frameworks.describe()}, {choice.reason}")
    cache = cache_folder()
    folder = cache / cache_key(VERSION, python_tag(), frameworks, choice.tag())
    log = folder / "build.log"

    def build() -> Path:
        require_tools()
        log.write_bytes(b"")
        return build_wheel(
            frameworks, choice, archive=cache / ARCHIVE, log=log, scratch=Path(scratch)
        )

    with tempfile.TemporaryDirectory(prefix="slowmo_hvd-build-") as scratch:
        wheel = cached_wheel(folder, build, force=options.force)
    if options.wheelhouse:
        say(f"for other machines: pip install {_leave(wheel, options.wheelhouse / folder.name)}")
    if options.no_install:
        say(f"the wheel is {wheel}")
        return
    install_log = folder / "install.log"
    install_log.write_bytes(b"")
    install(wheel, install_log)
    check(frameworks, choice, install_log)
    took = duration(time.monotonic() - started)
    say(f"Horovod {VERSION} works for {frameworks.describe()} ({took})")


def _leave(wheel: Path, folder: Path) -> Path:
    """Put it into a folder, whose name says what it was built for."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return store_wheel(wheel, folder)
    except OSError as error:
        raise BuildError(f"cannot leave the wheel in {folder}: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
