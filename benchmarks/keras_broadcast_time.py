"""The time of ``hvd.broadcast_variables`` and of an elastic sync in TensorFlow over Horovod's own.

Run by ``horovodrun -np 2 python -m benchmarks.keras_broadcast_time``, with the cycle time in
milliseconds as an argument where it is not Horovod's default. All are measured in turns in one run,
and the median of the ratios counts. Horovod's own elastic state does not run on Keras 3: what it
does in a sync is done here for it.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import horovod.tensorflow as horovod
import tensorflow as tf

import slowmo_hvd.tensorflow as hvd
from benchmarks.keras_sync_time import seconds
from benchmarks.ratios import summary

#: Elements of each tensor, float32.
SIZES = {
    "500 of 1 to 64 KB": [2**8 << index % 7 for index in range(500)],
    "4 of 32 MB": [2**23] * 4,
}
ROUNDS = 7


def horovods_sync(variables: list[Any]) -> list[Any]:
    """What the sync of horovod.tensorflow.elastic.TensorFlowKerasState consists of."""
    horovod.broadcast_variables(variables, 0)
    saved = [variable.numpy().copy() for variable in variables]
    horovod.broadcast_object({"step": 0}, 0)
    return saved


def calls(variables: list[Any]) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """What is measured: ours and Horovod's."""
    state = hvd.elastic.TensorFlowState(variables, step=0)
    return {
        "broadcast_variables": (
            lambda: hvd.broadcast_variables(variables, 0),
            lambda: horovod.broadcast_variables(variables, 0),
        ),
        "broadcast_variables in place": (
            lambda: hvd.broadcast_variables(variables, 0, inplace=True),
            lambda: horovod.broadcast_variables(variables, 0, inplace=True),
        ),
        "an elastic sync": (state.sync, lambda: horovods_sync(variables)),
    }


def main() -> None:
    if len(sys.argv) > 1:
        os.environ["HOROVOD_CYCLE_TIME"] = sys.argv[1]
    hvd.init()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    for name, sizes in SIZES.items():
        variables = [
            tf.Variable(tf.zeros([size]), name=f"v{index}") for index, size in enumerate(sizes)
        ]
        measured = calls(variables)
        ratios: dict[str, list[float]] = {call: [] for call in measured}
        horovods: dict[str, list[float]] = {call: [] for call in measured}
        for turn in range(ROUNDS + 1):
            for call, (ours, theirs) in measured.items():
                alone = seconds(theirs)
                if turn >= 1:  # the first round pays for tracing and memory
                    ratios[call].append(seconds(ours) / alone)
                    horovods[call].append(alone)
                else:
                    ours()
        for call in measured if hvd.rank() == 0 else ():
            print(
                f"{call} over Horovod's, tensors: {name}, {hvd.size()} ranks: "
                + summary(ratios[call], "Horovod's", horovods[call]),
                flush=True,
            )


if __name__ == "__main__":
    main()
