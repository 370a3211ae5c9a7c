"""Handwritten digits with a GradientTape.

    horovodrun --gloo -np 2 python examples/tensorflow_digits.py

A Horovod script with SlowMo in it. What differs from plain Horovod: the import, that the optimizer
is wrapped, and that `optimizer.flush()` comes before evaluation, so that all workers evaluate one
model. DistributedGradientTape may stay: gradients are left local.
"""

import argparse

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import slowmo_hvd.tensorflow as hvd

parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--epochs", type=int, default=15)
parser.add_argument("--batch-size", type=int, default=32, help="images a step, of each worker")
parser.add_argument("--lr", type=float, default=0.003)
parser.add_argument("--sync-period", type=int, default=12, help="τ")
parser.add_argument("--slow-momentum", type=float, default=0.2, help="β")
parser.add_argument("--seed", type=int, default=0)


def load_data():
    """Training and test images and labels, the same split on every worker."""
    digits = load_digits()
    images = digits.images[..., None].astype("float32") / 16
    labels = digits.target.astype("int64")
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:1257], order[1257:]
    return (images[train], labels[train]), (images[test], labels[test])


def make_model():
    layers = keras.layers
    return keras.Sequential(
        [
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
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Not scaled by hvd.size(), as it would be where gradients are averaged.
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.AdamW(args.lr),
        sync_period=args.sync_period,
        slow_momentum=args.slow_momentum,
    )
    model(images[:1])  # make the variables
    hvd.broadcast_variables(model.variables, root_rank=0)

    @tf.function
    def train_step(images, labels):
        with hvd.DistributedGradientTape(tf.GradientTape()) as tape:
            loss = loss_of(labels, model(images, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    for epoch in range(args.epochs):
        losses = [train_step(*batch) for batch in dataset]
        optimizer.flush()
        loss = hvd.allreduce(tf.reduce_mean(losses), name="loss")
        logits = model(test_images[hvd.rank() :: hvd.size()])
        right = tf.equal(tf.argmax(logits, 1), test_labels[hvd.rank() :: hvd.size()])
        accuracy = hvd.allreduce(tf.reduce_mean(tf.cast(right, tf.float32)), name="accuracy")
        if hvd.rank() == 0:
            print(f"epoch {epoch + 1:2}  loss {loss:.4f}  test accuracy {accuracy:.2%}")
    if hvd.rank() == 0:
        stats = optimizer.sync_stats
        print(f"{stats.syncs} syncs, {stats.bytes / 1e6:.2f} MB handed to allreduce")


if __name__ == "__main__":
    main()
