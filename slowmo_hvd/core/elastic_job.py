"""The one step that a script of an elastic job can take before ``hvd.elastic.run``.

Scripts make their variables with a training step before that. A worker that joins later takes this
step while the others are somewhere else, so the step stays local and must not communicate. The
ranks agree when the state of ``run`` is synchronised, or in the first step after that.

The answers here are equal on every rank. They depend on the launcher's environment and on the
progress of the script, which are the same on every worker, whenever it joined.
"""

import os
import sys

ONE_STEP = (
    "in an elastic job training begins inside the function that hvd.elastic.run decorates: one "
    "step before that, which makes variables, stays local, and this is another. Train inside, "
    "and put model and optimizer into the state"
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
