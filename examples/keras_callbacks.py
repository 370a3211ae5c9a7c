"""Keras' fit with the callbacks that people use, together: which rank has which, in which order.

    horovodrun --gloo -np 2 python examples/keras_callbacks.py

Kill it and start it again: it goes on with the epoch after the last one that was done.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import slowmo_hvd.tensorflow.keras as hvd

parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--epochs", type=int, default=15, help="the same at every start")
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--sync-period", type=int, default=12, help="τ")
parser.add_argument("--folder", type=Path, default=Path("keras_run"), help="which every rank sees")


def main():
    args = parser.parse_args()
    hvd.init()
    keras.utils.set_random_seed(0)
    tf.config.threading.set_intra_op_parallelism_threads(1)  # the workers share the cores
    first = hvd.rank() == 0

    digits = load_digits()
    images = digits.images[..., None].astype("float32") / 16
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:1257], order[1257:]
    # As many batches on every worker, of its own images.
    mine = train[hvd.rank() : len(train) // hvd.size() * hvd.size() : hvd.size()]

    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(args.lr, momentum=0.9, nesterov=True), sync_period=args.sync_period
    )
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    hvd.loggers.tensorboard(optimizer, args.folder / "logs/slowmo")

    callbacks = [
        hvd.callbacks.BroadcastGlobalVariablesCallback(0),
        hvd.callbacks.FlushCallback(),  # from here on all workers hold one model
        hvd.callbacks.MetricAverageCallback(),  # and see the same figures
        keras.callbacks.ReduceLROnPlateau("val_loss", patience=3),
        keras.callbacks.EarlyStopping("val_loss", patience=5, restore_best_weights=True),
        hvd.callbacks.BackupAndRestore(args.folder / "backup"),
    ]
    if first:
        callbacks += [
            keras.callbacks.ModelCheckpoint(
                args.folder / "best.keras", "val_loss", save_best_only=True
            ),
            keras.callbacks.TensorBoard(args.folder / "logs"),
        ]
    model.fit(
        images[mine],
        digits.target[mine],
        epochs=args.epochs,
        validation_data=(images[test], digits.target[test]),
        validation_batch_size=256,
        callbacks=callbacks,
        verbose=2 if first else 0,
    )
    if first:
        print(f"{optimizer.sync_stats.syncs} syncs")


if __name__ == "__main__":
    main()
