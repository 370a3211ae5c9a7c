"""A warning if a launcher has started several processes but Horovod sees only one."""

import os
from collections.abc import Mapping

#: Variables with the number of processes, which launchers set in those that they start.
_SIZES = {
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "SLURM_STEP_NUM_TASKS": "srun",
    "WORLD_SIZE": "torchrun",
}


def alone_among(size: int, environment: Mapping[str, str] = os.environ) -> list[str]:
    """The warning for a Horovod with ``size`` ranks, or nothing.

    A Horovod without MPI knows other processes only through horovodrun, Ray or Spark. With another
    launcher, each process is rank 0 of 1, and would silently train by itself.
    """
    if size > 1:
        return []
    for name, launcher in _SIZES.items():
        told = environment.get(name, "")
        if told.isdecimal() and int(told) > 1:
            return [
                f"this is one of {told} processes that {launcher} has started ({name}={told}), and "
                "Horovod sees it alone, so that each would train by itself: start them by "
                "horovodrun"
            ]
    return []
