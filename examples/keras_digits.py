"""Handwritten digits with Keras' fit.

    horovodrun --gloo -np 2 python examples/keras_digits.py

A Horovod script with SlowMo in it. Two things differ from plain Horovod: the import, and that
FlushCallback comes before validation, so that all workers validate, and save, one model.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import slowmo_hvd.tensorflow.keras as hvd

parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--epochs", type=int, default=15)
parser.add_argument("--batch-size", type=int, default=32, help="images a step, of each worker")
parser.add_argument("--lr", type=float, default=0.05)
parser.add_argument("--sync-period", type=int, default=12, help="τ")
parser.add_argument("--slow-momentum", type=float, default=0.2, help="β")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--save", type=Path, help="where rank 0 saves the model, such as digits.keras")


def load_data():
    """Training and test images and labels, the same split on every worker."""
    digits = load_digits()
    images = digits.images[..., None].astype("float32") / 16
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:1257], order[1257:]
    return (images[train], digits.target[train]), (images[test], digits.target[test])


def make_model():
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )


def main():
    args = parser.parse_args()
    hvd.init()
    keras.utils.set_random_seed(args.seed)
    tf.config.threading.set_intra_op_parallelism_threads(1)  # the workers share the cores
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        tf.config.set_visible_devices(gpus[hvd.local_rank()], "GPU")

    (images, labels), (test_images, test_labels) = load_data()
    # As many batches on every worker, of its own images, in an order of its own.
    mine = slice(hvd.rank(), len(images) // hvd.size() * hvd.size(), hvd.size())
    dataset = tf.data.Dataset.from_tensor_slices((images[mine], labels[mine]))
    dataset = dataset.shuffle(2000, seed=args.seed).batch(args.batch_size)

    model = make_model()
    # Not scaled by hvd.size(), as it would be where gradients are averaged.
    optimizer = keras.optimizers.SGD(args.lr, momentum=0.9, nesterov=True)
    optimizer = hvd.DistributedOptimizer(
        optimizer, sync_period=args.sync_period, slow_momentum=args.slow_momentum
    )
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        dataset,
        epochs=args.epochs,
        shuffle=False,  # the dataset does that itself
        validation_data=(
            test_images[hvd.rank() :: hvd.size()],
            test_labels[hvd.rank() :: hvd.size()],
        ),
        validation_batch_size=256,
        callbacks=[
            hvd.callbacks.BroadcastGlobalVariablesCallback(0),
            hvd.callbacks.FlushCallback(),
            hvd.callbacks.MetricAverageCallback(),
        ],
        verbose=2 if hvd.rank() == 0 else 0,
    )
    if hvd.rank() == 0:
        stats = optimizer.sync_stats
        print(f"{stats.syncs} syncs, {stats.bytes / 1e6:.2f} MB handed to allreduce")
        if args.save:
            unfinished = args.save.with_suffix(".unfinished.keras")
            model.save(unfinished)
            unfinished.replace(args.save)  # whoever kills us, this name has a whole model


if __name__ == "__main__":
    main()
