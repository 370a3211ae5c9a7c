"""What each Keras worker of the demo does: every method in turn, on the same data and order.

Started by `demo.py`, under horovodrun.
"""

import argparse
import json
import time

import horovod.tensorflow
import keras
import numpy as np
import tensorflow as tf
from demo import parse_arguments
from sklearn.datasets import load_digits

import slowmo_hvd.tensorflow.keras as hvd

TEST_IMAGES = 540  # of the 1797 that scikit-learn carries


def train_all(args: argparse.Namespace) -> None:
    """Train with each method from each seed; rank 0 prints a JSON object at each sync."""
    hvd.init()
    tf.config.threading.set_intra_op_parallelism_threads(1)  # the workers share the cores
    # β, or None for averaging gradients at every step.
    methods = {"gradient averaging": None, "Local SGD": 0.0}
    methods |= {f"SlowMo β={beta:g}": beta for beta in args.slow_momentum}
    for seed in range(args.seeds):
        for method, beta in methods.items():
            Run(method, beta, seed, args).train()


class AveragedGradients(keras.optimizers.SGD):
    """Averages gradients before each step, as Horovod's own optimizer does up to Keras 2."""

    def apply(self, grads, trainable_variables=None):
        """Average, then step."""
        grads = [
            horovod.tensorflow.allreduce(grad, name=f"gradient_{index}", ignore_name_scope=True)
            for index, grad in enumerate(grads)
        ]
        super().apply(grads, trainable_variables)


def make_model() -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            *(layers.Conv2D(16, 3, padding="same", activation="relu"), layers.MaxPooling2D()),
            *(layers.Conv2D(32, 3, padding="same", activation="relu"), layers.MaxPooling2D()),
            *(layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dense(10)),
        ]
    )


class Run(keras.callbacks.Callback):
    """One training of one method, and what `fit` calls to report on it."""

    def __init__(
        self, method: str, beta: float | None, seed: int, args: argparse.Namespace
    ) -> None:
        super().__init__()
        self.method, self.beta, self.seed, self.args = method, beta, seed, args
        digits = load_digits()
        self.images = tf.constant(digits.images[..., None] / 16, tf.float32)
        self.labels = tf.constant(digits.target, tf.int64)
        order = np.random.default_rng(0).permutation(len(digits.target))
        self.test, self.training = order[:TEST_IMAGES], order[TEST_IMAGES:]
        keras.utils.set_random_seed(seed)
        self.network = make_model()
        settings = {"momentum": 0.9, "nesterov": True}
        if beta is None:
            self.optimizer = AveragedGradients(args.lr, **settings)
        else:
            self.optimizer = hvd.DistributedOptimizer(
                keras.optimizers.SGD(args.lr, **settings),
                sync_period=args.sync_period,
                slow_momentum=beta,
            )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.network.compile(optimizer=self.optimizer, loss=loss)
        self.logits = tf.function(self.network)

    def train(self) -> None:
        """Train for the whole budget, and report at each sync and at the end."""
        batches = self.batches()
        self.steps = len(batches)
        dataset = tf.data.Dataset.from_tensor_slices(batches).map(
            lambda chosen: (tf.gather(self.images, chosen), tf.gather(self.labels, chosen))
        )
        broadcast = hvd.callbacks.BroadcastGlobalVariablesCallback(0)
        self.network.fit(dataset, shuffle=False, verbose=0, callbacks=[broadcast, self])

    def batches(self) -> np.ndarray:
        """This worker's part of each global batch, as indices; the same for every method."""
        generator = np.random.default_rng(1000 + self.seed)
        whole = len(self.training) // self.args.global_batch * self.args.global_batch
        epochs = [generator.permutation(self.training)[:whole] for _ in range(self.args.epochs)]
        return np.concatenate(epochs).reshape(-1, self.args.global_batch)[
            :, hvd.rank() :: hvd.size()
        ]

    def on_train_batch_end(self, batch, logs=None):
        """Report right after a sync, when all workers hold one model."""
        if batch == 0:  # the first step is slow: TensorFlow makes the graph
            self.begin, self.paused = time.perf_counter(), 0.0  # seconds spent on reports
        if (batch + 1) % self.args.sync_period == 0:
            self.report(batch + 1)

    def on_train_end(self, logs=None):
        """Report at the end, where fit() has brought the workers together."""
        self.report(self.steps, accuracy=self.measure(self.test)[1])

    def report(self, step: int, **more: float) -> None:
        """Print where the run stands. Every worker takes part in measuring."""
        seconds = time.perf_counter() - self.begin - self.paused
        loss, _ = self.measure(self.training)
        if self.beta is None:
            syncs, sent = step, 4 * step * self.network.count_params()
        else:
            syncs, sent = self.optimizer.sync_stats.syncs, self.optimizer.sync_stats.bytes
        look = {"method": self.method, "seed": self.seed, "step": step, "steps": self.steps}
        look |= {"loss": loss, "syncs": syncs, "bytes": sent, "seconds": seconds}
        if hvd.rank() == 0:
            print(json.dumps(look | more), flush=True)
        self.paused = time.perf_counter() - self.begin - seconds

    def measure(self, indices: np.ndarray) -> tuple[float, float]:
        """Loss and accuracy of the model, each worker on its part of the images."""
        mine = indices[hvd.rank() :: hvd.size()]
        logits, labels = self.logits(tf.gather(self.images, mine)), tf.gather(self.labels, mine)
        losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        right = tf.cast(tf.equal(tf.argmax(logits, 1), labels), tf.float32)
        sums = tf.stack([tf.reduce_sum(losses), tf.reduce_sum(right)])
        total = horovod.tensorflow.allreduce(sums, op=horovod.tensorflow.Sum, name="measure")
        return float(total[0]) / len(indices), float(total[1]) / len(indices)


if __name__ == "__main__":
    train_all(parse_arguments())
