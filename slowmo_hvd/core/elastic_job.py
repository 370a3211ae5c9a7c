"""Steps of an elastic job outside the function that ``hvd.elastic.run`` decorates.

One can be taken before it. Scripts make their variables with such a step. A worker that joins
later takes this step while the others are somewhere else, so the step stays local and must not
communicate. The ranks agree when the state of ``run`` is synchronised, or in the first step after
that.

The answers here are equal on every rank. They depend on the launcher's environment and on the
progress of the script, which are the same on every worker, whenever it joined.

None can be taken in a reset callback. Horovod's Keras example takes one there, in which workers
that have just arrived take part with the step before ``run``. Here they are already waiting in the
state's ``sync``.
"""

import functools
import os
import sys
from typing import Any

ONE_STEP = (
    "in an elastic job training begins inside the function that hvd.elastic.run decorates: one "
    "step before that, which makes variables, stays local, and this is another. Train inside, "
    "and put model and optimizer into the state"
)
_resetting = False


def watch_reset_callbacks(state: Any) -> None:
    """Have Horovod's ``State``, the base of all states, tell when it calls its reset callbacks.

    The workers that went on all call theirs, so that `refuse_in_reset` is alike on them.
    """
    if hasattr(state.on_reset, "__wrapped__"):
        return  # done by the adapter for the other framework
    original = state.on_reset

    @functools.wraps(original)
    def on_reset(self: Any) -> None:
        global _resetting
        _resetting = True
        try:
            original(self)
        finally:
            _resetting = False

    state.on_reset = on_reset


def refuse_in_reset() -> None:
    """Raise RuntimeError in a reset callback."""
    if _resetting:
        raise RuntimeError(
            "a training step in a reset callback cannot be averaged, since workers that have just "
            "arrived are not in it: leave it out of the callback; hvd.elastic.run gives all "
            "workers one state"
        )


def elastic_job() -> bool:
    """Whether Horovod's elastic launcher started this process."""
    return os.environ.get("HOROVOD_ELASTIC") == "1"


def before_run() -> bool:
    """Whether this is an elastic job, and no ``hvd.elastic.run`` has begun in this process."""
    if not elastic_job():
        return False
    horovods = sys.modules.get("horovod.common.elastic")
    # `run` starts the service that is notified of new hosts.
    return horovods is None or horovods.notification_manager._service is None
