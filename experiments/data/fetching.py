"""Where data comes from: an address, or a Debian package that needs no root to be unpacked."""

import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

from slowmo_hvd.build_horovod.cache import cache_folder


class DataError(Exception):
    """The data is not to be had here; the sentence says what to do."""


def data_folder() -> Path:
    """Where fetched data stays: $XDG_CACHE_HOME/slowmo_hvd/data, or in ~/.cache."""
    return cache_folder() / "data"


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """A folder in `data_folder`, made once and wholly.

    Args:
        name: the folder's.
        make: fills an empty folder.
    """
    folder = data_folder() / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            new = Path(scratch) / name
            new.mkdir()
            make(new)
            try:
                new.rename(folder)
            except OSError:
                if not folder.exists():  # or another process was quicker
                    raise
    return folder


def download(url: str, file: Path) -> None:
    """Fetch a file.

    Raises:
        DataError: the address does not answer.
    """
    try:
        with urllib.request.urlopen(url, timeout=20) as answer, file.open("wb") as out:
            shutil.copyfileobj(answer, out)
    except OSError as error:  # urllib's are OSErrors too
        raise DataError(f"{url} cannot be fetched: {getattr(error, 'reason', error)}") from None


def debian_package(name: str) -> Path:
    """The folder with the files of a Debian package, which is not installed.

    Raises:
        DataError: there is no such package here.
    """

    def run(*command: str, folder: Path) -> None:
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
            return
        except FileNotFoundError:
            reason = f"there is no {command[0]} here"
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise DataError(
            f"the Debian package {name} cannot be fetched ({reason}): fetch it on a Debian "
            f"or Ubuntu machine with `apt-get download {name}`, and unpack it here with "
            f"`dpkg -x {name}_*.deb {data_folder() / name}`"
        )

    def unpack(folder: Path) -> None:
        run("apt-get", "download", name, folder=folder.parent)
        (package,) = folder.parent.glob("*.deb")
        run("dpkg", "-x", str(package), str(folder), folder=folder.parent)

    return kept(name, unpack)
