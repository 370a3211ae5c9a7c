"""Save on some ranks, or load on rank 0 alone, broadcast to all the ranks there are, and go on."""

import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import slowmo_hvd.tensorflow.keras as hvd
from slowmo_hvd.tensorflow import broadcast_variables

ORDERS = ("the model, its optimizer", "its optimizer, the model", "by the callback")


def compiled(value: float) -> keras.Model:
    """A model of one weight."""
    start = keras.initializers.Constant(value)
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer=start)
    model = keras.Sequential([keras.Input((1,)), layer])
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(1.0), sync_period=2, slow_momentum=0.5
    )
    model.compile(optimizer=optimizer, loss="mse")
    return model


def save(path: Path) -> None:
    """A whole window from x = 2, with gradients that differ on the ranks and average to 1/2."""
    model = compiled(2.0)
    (weight,) = model.trainable_variables
    for _ in range(2):
        model.optimizer.apply_gradients([(tf.fill((1, 1), float(hvd.rank())), weight)])
    if hvd.rank() == 0:
        model.save(path)


def resume(path: Path, order: str) -> dict[str, Any]:
    root = hvd.rank() == 0
    model = keras.saving.load_model(path, safe_mode=True) if root else compiled(7.0)
    callbacks = [hvd.callbacks.BroadcastGlobalVariablesCallback(0)]
    if order != "by the callback":
        callbacks = []
        model.optimizer.build(model.trainable_variables)
        both = [model.variables, model.optimizer.variables]
        for variables in both if order == "the model, its optimizer" else reversed(both):
            broadcast_variables(variables, root_rank=0)
    nothing = np.zeros((2, 1), "float32")  # two batches without a gradient
    model.fit(nothing, nothing, batch_size=1, verbose=0, callbacks=callbacks)
    return {
        "steps": int(model.optimizer.iterations.numpy()),
        "in the end": float(model.trainable_variables[0].numpy()[0, 0]),
    }


def main(command: str, folder: str) -> None:
    hvd.init()
    path = Path(folder) / "model.keras"
    if command == "save":
        save(path)
        return
    reports = [resume(path, order) for order in ORDERS]
    (Path(folder) / f"{hvd.size()}.{hvd.rank()}").write_text(json.dumps(reports))


if __name__ == "__main__":
    main(*sys.argv[1:])
