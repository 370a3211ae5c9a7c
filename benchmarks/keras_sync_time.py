"""The time of one sync in TensorFlow over one raw allreduce of as many bytes.

Run by ``horovodrun -np 2 python -m benchmarks.keras_sync_time``. Both are measured in turns in one
run, since the machine's speed changes from minute to minute; the median of the ratios counts.
"""

import time
from collections.abc import Callable

import keras
import tensorflow as tf

import slowmo_hvd.tensorflow as hvd
from benchmarks.ratios import summary

ROUNDS = 15


def seconds(work: Callable[[], object]) -> float:
    """The time that ``work`` takes on all ranks, begun together."""
    hvd.allreduce(tf.zeros([1]), name="barrier")
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    hvd.init()
    keras.utils.set_random_seed(0)  # one start on all ranks
    tf.config.threading.set_intra_op_parallelism_threads(1)
    # 80 linear layers of 512 × 512 and their biases, as in benchmarks.models.
    variables = [tf.Variable(tf.random.normal(s)) for _ in range(80) for s in ([512, 512], [512])]
    gradients = [tf.random.normal(variable.shape) * 1e-3 for variable in variables]
    size = sum(variable.shape.num_elements() for variable in variables)
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(1e-3), sync_period=10**9, slow_momentum=0.5
    )
    step = tf.function(
        lambda: optimizer.apply_gradients(zip(gradients, variables, strict=True)), autograph=False
    )
    flat = tf.zeros([size])
    raw = tf.function(lambda: hvd.allreduce(flat, op=hvd.Sum, name="raw"), autograph=False)
    ratios, raws = [], []
    for turn in range(ROUNDS + 2):
        alone = seconds(raw)
        step()
        sync = seconds(optimizer.flush)
        if turn >= 2:  # the first rounds pay for tracing and for Horovod's fusion buffer
            ratios.append(sync / alone)
            raws.append(alone)
    if hvd.rank() == 0:
        print(
            f"sync over raw allreduce of {size * 4 / 1e6:.0f} MB in TensorFlow, {hvd.size()} "
            f"ranks: {summary(ratios, 'raw', raws)}"
        )


if __name__ == "__main__":
    main()
