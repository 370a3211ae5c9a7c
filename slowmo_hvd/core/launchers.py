"""A warning where a launcher has started several processes and Horovod sees each of them alone."""

import os
from collections.abc import Mapping

#: What launchers tell the processes that they start: how many there are.
_SIZES = {
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "SLURM_STEP_NUM_TASKS": "srun",
    "WORLD_SIZE": "torchrun",
}


def alone_among(size: int, environment: Mapping[str, str] = os.environ) -> list[str]:
    """What to warn of where Horovod has so many ranks: a sentence, or nothing.

    A Horovod without MPI knows of other processes by horovodrun, Ray or Spark alone. Started by
    another launcher each of them is rank 0 of 1, and would train by itself without a word.
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
