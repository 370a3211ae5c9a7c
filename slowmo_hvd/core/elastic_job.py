"""The one step that a script of an elastic job may take before ``hvd.elastic.run``: it stays local.

Scripts make their variables by a training step before. A worker that joins later takes that step
while the others are elsewhere, so it must not communicate: the ranks agree when the state of
``run`` is synchronised, or in the first step after that.

Rank-equal: it goes by the launcher's environment and by the script's own course, which are the
same on every worker, whenever it came.
"""

import os
import sys

ONE_STEP = (
    "in an elastic job training begins inside the function that hvd.elastic.run decorates: one "
    "step before that, which makes variables, stays local, and this is another. Train inside, "
    "and put model and optimizer into the state"
)


def elastic_job() -> bool:
    """Whether this process was started by Horovod's elastic launcher."""
    return os.environ.get("HOROVOD_ELASTIC") == "1"


def before_run() -> bool:
    """Whether this is an elastic job in which no ``hvd.elastic.run`` has begun in this process."""
    if not elastic_job():
        return False
    horovods = sys.modules.get("horovod.common.elastic")
    # `run` starts the service that hears of new hosts.
    return horovods is None or horovods.notification_manager._service is None
