"""Calls of step() that are not training.

Both Horovod's own ``broadcast_optimizer_state`` and torch's distributed checkpoint fill an empty
optimizer state by zero gradients and a call of ``step()``, on those ranks alone whose state is
empty. Such a call must not count, or the ranks' schedules part. Zero gradients do not tell it
from a real step (a rank may well see none but zeros); who calls does.
"""

import sys
from types import FrameType

_INITIALISERS = frozenset({"horovod.torch.functions", "torch.distributed.checkpoint.state_dict"})
_DEPTH = 8  # wrappers of torch and of schedulers between them and us


def is_initialising_state() -> bool:
    """Whether ``step()`` was called only to fill an empty optimizer state."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_DEPTH):
        if frame is None:
            return False
        if frame.f_globals.get("__name__") in _INITIALISERS:
            return True
        frame = frame.f_back
    return False
