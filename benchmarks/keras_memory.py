"""The memory that Keras' wrapper adds, at its peak at every moment of a training.

Run by ``horovodrun -np 2 python -m benchmarks.keras_memory 0.5``, with β, and with a number of
layers for another size than 21M parameters. As ``benchmarks.memory``, which says what is told.
TensorFlow keeps memory that has been freed, so that a process measures one β alone.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import tensorflow as tf

import slowmo_hvd.tensorflow as hvd
from benchmarks.peak import peak, resident, tell


def large_model(layers: int) -> keras.Model:
    """Linear layers of 512 × 512 and their biases."""
    return keras.Sequential(
        [keras.Input((512,)), *[keras.layers.Dense(512) for _ in range(layers)]]
    )


def moments(layers: int, **slowmo: object) -> Iterator[tuple[str, int, int]]:
    """What happens, the bytes that it adds at its peak, and the parameters' bytes."""
    model = large_model(layers)
    variables = model.trainable_variables
    size = sum(4 * variable.value.shape.num_elements() for variable in variables)
    gradients = [tf.random.normal(variable.shape) * 1e-3 for variable in variables]
    bare = keras.optimizers.SGD(1e-3, momentum=0.9)
    bare.apply(gradients, variables)
    warm = tf.zeros([size // 4])
    for _ in range(3):
        hvd.allreduce(warm, name="warm", op=hvd.Sum)
    del warm
    before = resident()
    optimizer = hvd.DistributedOptimizer(bare, sync_period=3, buffers="maintain", **slowmo)

    def steps(count: int) -> Callable[[], None]:
        def take() -> None:
            for _ in range(count):
                optimizer.apply(gradients, variables)

        return take

    yield "the first step", peak(steps(1)) - before, size
    yield "a sync", peak(steps(3)) - before, size
    yield "another", peak(steps(3)) - before, size
    with tempfile.TemporaryDirectory() as folder:
        model.compile(optimizer)
        path = Path(folder) / "a.weights.h5"
        yield "save_weights()", peak(lambda: model.save_weights(path)) - before, size
        yield "load_weights()", peak(lambda: model.load_weights(path)) - before, size
    yield "the step after load_weights()", peak(steps(1)) - before, size
    values = [variable.value for variable in optimizer.variables]
    sending = peak(lambda: hvd.broadcast_variables(values, root_rank=0))
    yield "broadcast_variables()", sending - before, size
    yield "the step after broadcast_variables()", peak(steps(1)) - before, size


def main() -> None:
    hvd.init()
    keras.utils.set_random_seed(0)  # one start on all ranks
    tf.config.threading.set_intra_op_parallelism_threads(1)
    slow_momentum = float(sys.argv[1]) if len(sys.argv) > 1 else 0.5
    layers = int(sys.argv[2]) if len(sys.argv) > 2 else 80
    tell(hvd, moments(layers, slow_momentum=slow_momentum), slow_momentum)


if __name__ == "__main__":
    main()
