"""The work by name: two trainings, and models of any size for the sync or the speed alone."""

import re

from benchmarks.contenders.protocol import Work
from benchmarks.contenders.works.convnet import Convnet
from benchmarks.contenders.works.sizes import Size
from benchmarks.contenders.works.transformer import Transformer
from benchmarks.contenders.works.waiting import Waiting

TRAININGS = ("convnet", "transformer")


def work(name: str) -> Work:
    """The work of this name.

    Raises:
        ValueError: there is none.
    """
    if match := re.fullmatch(r"(sync|wait)(\d{1,4})m", name):
        if int(match[2]) > 0:
            return (Size if match[1] == "sync" else Waiting)(int(match[2]))
    elif name == "convnet":
        return Convnet()
    elif name == "transformer":
        return Transformer()
    raise ValueError(
        f"the work {name!r} is none of convnet, transformer, sync100m, sync1m, wait25m ..."
    )


def measures(name: str) -> list[str]:
    """What can be measured of it."""
    if name in TRAININGS:
        return ["speed", "learn"]
    return ["speed"] if isinstance(work(name), Waiting) else ["sync"]
