"""The work by name: two trainings, and models of any size for the sync alone."""

import re

from benchmarks.contenders.protocol import Work
from benchmarks.contenders.works.convnet import Convnet
from benchmarks.contenders.works.sizes import Size
from benchmarks.contenders.works.transformer import Transformer

TRAININGS = ("convnet", "transformer")


def work(name: str) -> Work:
    """The work of this name.

    Raises:
        ValueError: there is none.
    """
    if match := re.fullmatch(r"sync(\d{1,4})m", name):
        if int(match[1]) > 0:
            return Size(int(match[1]))
    elif name == "convnet":
        return Convnet()
    elif name == "transformer":
        return Transformer()
    raise ValueError(f"the work {name!r} is none of convnet, transformer, sync100m, sync1m ...")
