"""Who called: the user's script, or code that calls step() for other reasons than training.

Horovod's own ``broadcast_optimizer_state`` and torch's distributed checkpoint both fill an empty
optimizer state with zero gradients and a call of ``step()``, only on the ranks whose state is
empty. Such a call must not count, or the ranks' schedules would diverge. Zero gradients do not
distinguish it from a real step, because a rank can really have only zeros. The caller does.

torch's distributed checkpoint also takes only what it knows from a state_dict, and drops the slow
state.
"""

import sys
from collections.abc import Collection
from types import FrameType

_CHECKPOINT = "torch.distributed.checkpoint.state_dict"
_INITIALISERS = frozenset({"horovod.torch.functions", _CHECKPOINT})
_SCHEDULE_FREE_WRAPPERS = "schedulefree.wrap_schedulefree"
_DEPTH = 8  # wrappers by torch and by schedulers between them and us


def is_initialising_state() -> bool:
    """Whether ``step()`` was called only to fill an empty optimizer state."""
    return _called_from(_INITIALISERS)


def is_distributed_checkpoint() -> bool:
    """Whether torch's ``get_optimizer_state_dict`` or a similar function has called."""
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
    """Raise TypeError if a ScheduleFreeWrapper around our optimizer called ``step()``.

    During the step we would see z in the parameters, and y between the steps. x would never be
    averaged.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        # Not with f_locals: what is read there stays alive until the frame ends.
        if frame.f_globals.get("__name__", "").startswith(_SCHEDULE_FREE_WRAPPERS):
            raise TypeError(
                "ScheduleFreeWrapper cannot be put around a DistributedOptimizer, which would "
                "average its z and not its x: give DistributedOptimizer a schedule-free optimizer, "
                "such as schedulefree.AdamWScheduleFree"
            )
        frame = frame.f_back
