"""Who called: the user's script, or code that calls step() for other reasons than training.

Both Horovod's own ``broadcast_optimizer_state`` and torch's distributed checkpoint fill an empty
optimizer state by zero gradients and a call of ``step()``, on those ranks alone whose state is
empty. Such a call must not count, or the ranks' schedules part. Zero gradients do not tell it
from a real step (a rank may well see none but zeros); who calls does.

torch's distributed checkpoint also takes of a state_dict what it knows, and drops the slow state.
"""

import sys
from collections.abc import Collection
from types import FrameType

_CHECKPOINT = "torch.distributed.checkpoint.state_dict"
_INITIALISERS = frozenset({"horovod.torch.functions", _CHECKPOINT})
_SCHEDULE_FREE_WRAPPERS = "schedulefree.wrap_schedulefree"
_DEPTH = 8  # wrappers of torch and of schedulers between them and us


def is_initialising_state() -> bool:
    """Whether ``step()`` was called only to fill an empty optimizer state."""
    return _called_from(_INITIALISERS)


def is_distributed_checkpoint() -> bool:
    """Whether one of torch's ``get_optimizer_state_dict`` and the like has called."""
    return _called_from({_CHECKPOINT})


def _called_from(modules: Collection[str]) -> bool:
    frame: FrameType | None = sys._getframe(2)
    for _ in range(_DEPTH):
        if frame is None:
            return False
        if frame.f_globals.get("__name__") in modules:
            return True
        frame = frame.f_back
    return False


def refuse_schedule_free_around() -> None:
    """Raise TypeError if ``step()`` was called by a ScheduleFreeWrapper around our optimizer.

    It shows us z in the parameters, and y between the steps; x would never be averaged.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        # Not by f_locals: a frame keeps what is looked at there alive until it ends.
        if frame.f_globals.get("__name__", "").startswith(_SCHEDULE_FREE_WRAPPERS):
            raise TypeError(
                "ScheduleFreeWrapper cannot be put around a DistributedOptimizer, which would "
                "average its z and not its x: give DistributedOptimizer a schedule-free optimizer, "
                "such as schedulefree.AdamWScheduleFree"
            )
        frame = frame.f_back
