"""What a Keras optimizer of SlowMo's costs by the number of variables, over the bare optimizer.

Run by ``horovodrun -np 2 python -m benchmarks.keras_variables``. Many variables of four elements
each, so that nothing else takes time. Processor time is measured, of ours and of the bare one in
turns: first of a step between syncs, then of tracing and the first steps with the first sync.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

import slowmo_hvd.tensorflow.keras as hvd

COUNTS = (16, 64, 160, 500)
TURNS = 9
STARTS = 3
INNERS: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "SGD": lambda: keras.optimizers.SGD(1e-3),
    "Adam": lambda: keras.optimizers.Adam(1e-3),
}


class Many(keras.layers.Layer):
    """So many variables, all added to what comes in."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Make them."""
        names = (f"w{i}" for i in range(self.count))
        self.all = [self.add_weight(shape=(4,), initializer="zeros", name=name) for name in names]

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Add them."""
        return inputs + tf.add_n([tf.convert_to_tensor(variable) for variable in self.all])


def by_fit(optimizer: keras.optimizers.Optimizer, count: int) -> Callable[[int], object]:
    model = keras.Sequential([keras.layers.Input((4,)), Many(count)])
    model.compile(optimizer=optimizer, loss="mse", jit_compile=False)
    dataset = tf.data.Dataset.from_tensors((tf.zeros([2, 4]), tf.zeros([2, 4]))).repeat()
    return lambda steps: model.fit(dataset, steps_per_epoch=steps, shuffle=False, verbose=0)


def by_function(
    optimizer: keras.optimizers.Optimizer, count: int, *, built: bool = False
) -> Callable[[int], object]:
    variables = [tf.Variable(tf.zeros([4])) for _ in range(count)]
    if built:
        optimizer.build(variables)
    gradients = [tf.fill([4], 1e-3) for _ in variables]

    @tf.function(autograph=False)
    def step() -> None:
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    return lambda steps: [step() for _ in range(steps)]


def seconds(work: Callable[[], object]) -> float:
    """The processor time that this process takes for it."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def between_syncs(
    make_inner: Callable[[], keras.optimizers.Optimizer], train: Callable, count: int
) -> Iterator[tuple[float, float]]:
    """µs a variable of a step of the bare optimizer, and what ours takes more."""
    # A period that never ends; `fit` ends with a flush, so that is left out of what is timed.
    wrapped = hvd.DistributedOptimizer(make_inner(), sync_period=10**9)
    wrapped.finalize_variable_values = lambda variables: None
    works = train(make_inner(), count), train(wrapped, count)
    steps = max(10, 2000 // count)
    for turn in range(-2, TURNS):
        order = works if turn % 2 else works[::-1]
        times = {work: seconds(lambda work=work: work(steps)) for work in order}
        if turn >= 0:  # the first steps trace, allocate and agree on a start
            bare, ours = (times[work] * 1e6 / steps / count for work in works)
            yield bare, ours - bare


def first_steps(
    make_inner: Callable[[], keras.optimizers.Optimizer], count: int, *, built: bool
) -> Iterator[tuple[float, float]]:
    """Processor time of tracing and ten steps with the first sync, of the bare one and ours.

    TensorFlow traces a function twice if it makes variables in the first trace: an optimizer that
    is not ``built`` before and has any, as ours has and bare SGD without momentum has not.
    """
    for turn in range(-1, STARTS):  # the first one loads what TensorFlow loads when needed
        times = {}
        for wrap in (False, True) if turn % 2 else (True, False):
            hvd.allreduce(tf.zeros([1]), name="barrier")
            inner = make_inner()
            optimizer = hvd.DistributedOptimizer(inner, sync_period=8) if wrap else inner
            times[wrap] = seconds(lambda it=optimizer: by_function(it, count, built=built)(10))
        if turn >= 0:
            yield times[False], times[True]


def main() -> None:
    hvd.init()
    tf.config.threading.set_intra_op_parallelism_threads(1)

    def say(what: str) -> None:
        if hvd.rank() == 0:
            print(f"{what}, {hvd.size()} ranks", flush=True)

    ways = {"fit": by_fit, "tf.function": by_function}
    for (way, train), (name, make_inner) in itertools.product(ways.items(), INNERS.items()):
        for count in COUNTS:
            pairs = between_syncs(make_inner, train, count)
            bare, more = (statistics.median(column) for column in zip(*pairs, strict=True))
            say(
                f"step between syncs in {way}, {name}, {count} variables: {more:.2f} µs a variable "
                f"over {bare:.2f} µs of the bare optimizer"
            )
    for (name, make_inner), built in itertools.product(INNERS.items(), (False, True)):
        pairs = list(first_steps(make_inner, COUNTS[-1], built=built))
        ratios = [ours / bare for bare, ours in pairs]
        bare, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
        say(
            f"tracing and 10 steps with a sync, {name}{', built before' if built else ''}, "
            f"{COUNTS[-1]} variables: {ours:.2f} s of "
            f"processor time, {statistics.median(ratios):.2f} times that of the bare optimizer "
            f"(min {min(ratios):.2f}, max {max(ratios):.2f}, {bare:.2f} s)"
        )


if __name__ == "__main__":
    main()
