"""Two runs of which a checkpoint in the middle and the end were saved by an earlier release.

``python runs.py torch`` and ``python runs.py tensorflow`` saved them, in this folder, with the
version 0.1 of commit 9008d99, before there was an engine: one worker, in the second step of the
second window.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ENDS = HERE / "ends.json"
SETTINGS: dict[str, Any] = {"sync_period": 3, "slow_momentum": 0.5}
STEPS, SAVED_AFTER = 9, 5


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of a step."""
    x = np.sin(np.arange(12, dtype="float32") + step).reshape(4, 3)
    return x, x[:, :2] ** 2


def torch_run() -> tuple[Any, Any]:
    """A model and its optimizer before the first step."""
    import torch

    import slowmo_hvd.torch as hvd

    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-1, 1, 6).view(2, 3))
        model.bias.zero_()
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, hvd.DistributedOptimizer(inner, buffers="maintain", **SETTINGS)


def torch_steps(model: Any, optimizer: Any, steps: range) -> list[float]:
    """Take these steps; return the weights."""
    import torch

    for step in steps:
        x, y = map(torch.from_numpy, batch(step))
        optimizer.zero_grad()
        ((model(x) - y) ** 2).mean().backward()
        optimizer.step()
    return [value for param in model.parameters() for value in param.flatten().tolist()]


def keras_run() -> Any:
    """A compiled model before the first step."""
    import keras

    import slowmo_hvd.tensorflow as hvd

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.set_weights([np.linspace(-1, 1, 6, dtype="float32").reshape(3, 2), np.zeros(2)])
    optimizer = hvd.DistributedOptimizer(keras.optimizers.Adam(0.1), **SETTINGS)
    model.compile(optimizer, loss="mse")
    return model


def keras_steps(model: Any, steps: range) -> list[float]:
    """Take these steps; return the weights."""
    for step in steps:
        model.train_on_batch(*batch(step))
    return [value for weight in model.get_weights() for value in weight.ravel().tolist()]


def main(framework: str) -> None:
    """Save a checkpoint, and the weights at the end."""
    ends = json.loads(ENDS.read_text()) if ENDS.exists() else {}
    if framework == "torch":
        import torch

        import slowmo_hvd.torch as hvd

        hvd.init()
        model, optimizer = torch_run()
        torch_steps(model, optimizer, range(SAVED_AFTER))
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, HERE / "torch.pt")
        ends["torch"] = torch_steps(model, optimizer, range(SAVED_AFTER, STEPS))
    else:
        import slowmo_hvd.tensorflow as tf_hvd

        tf_hvd.init()
        model = keras_run()
        keras_steps(model, range(SAVED_AFTER))
        model.save(HERE / "model.keras")
        ends["tensorflow"] = keras_steps(model, range(SAVED_AFTER, STEPS))
    ENDS.write_text(json.dumps(ends, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
