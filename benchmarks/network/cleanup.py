"""What a network has on the machine, known by its name, and networks whose process was killed."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.network import namespaces

_PREFIX = "slowmo"


def name(process: int, number: int) -> str:
    """The name of a process's network, with which all that belongs to it begins."""
    return f"{_PREFIX}-{process}-{number}"


def remove(network: str) -> None:
    """Remove all that a network has on the machine."""
    for thing in _things():
        if thing.name.startswith(f"{network}-"):
            if thing.parent == _temporary():
                shutil.rmtree(thing, ignore_errors=True)
            else:
                namespaces.remove(thing.name)


def abandoned() -> set[str]:
    """The networks that are still there while their process is not."""
    found = filter(None, (owner(thing.name) for thing in _things()))
    return {network for network, process in found if not _lives(process)}


def owner(thing: str) -> tuple[str, int] | None:
    """The network that a thing of this name belongs to, and its process; None if to no network."""
    match = re.match(rf"({_PREFIX}-(\d+)-\d+)-", thing)
    return (match[1], int(match[2])) if match else None


def make_folder(network: str) -> Path:
    """A temporary folder for a network."""
    return Path(tempfile.mkdtemp(prefix=f"{network}-", dir=_temporary()))


def _things() -> Iterator[Path]:
    for folder in (namespaces.MOUNTED, namespaces.FILES, _temporary()):
        if folder.exists():
            yield from list(folder.iterdir())


def _temporary() -> Path:
    return Path(tempfile.gettempdir())


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OverflowError:
        return False  # no process has such a number
    return True
