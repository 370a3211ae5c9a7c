"""How often Horovod's ranks talk while there is nothing to send; by default every millisecond.

Where a rank has one core that takes a tenth of it from a training that sends seldom, as is told in
the README. Where something is sent in every step the default is better, and is left.
"""

import os

_MILLISECONDS = "10"


def send_seldom() -> None:
    """Before ``hvd.init()``; what is set already stays."""
    os.environ.setdefault("HOROVOD_CYCLE_TIME", _MILLISECONDS)
