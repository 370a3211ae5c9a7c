"""A model of any size in 160 tensors, whose training costs next to nothing: for the sync alone.

Its loss is the sum of its parameters, so a step fills the gradients with ones.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.contenders.protocol import Batch, Setting

LAYERS = 80  # each with a weight and a bias
WIDTH = 512


class Size:
    """So many million parameters."""

    lr = 1e-3
    target = 0.0
    batch_size = 1
    adaptive = False

    def __init__(self, millions: int) -> None:
        self.name = f"sync{millions}m"
        inputs = max(1, round(millions * 10**6 / LAYERS / WIDTH) - 1)
        self.shapes = [shape for _ in range(LAYERS) for shape in ((inputs, WIDTH), (WIDTH,))]
        self.parameters = sum(int(np.prod(shape)) for shape in self.shapes)

    def batch(self, setting: Setting, step: int) -> Batch:
        """Nothing."""
        return np.zeros(1, "float32"), np.zeros(1, "int64")

    def held_out(self) -> Sequence[Batch]:
        """Nothing."""
        return []

    def torch_model(self) -> Any:
        """The network in PyTorch."""
        import torch
        from torch import nn

        class Total(nn.Module):
            def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
                super().__init__()
                made = (nn.Parameter(torch.randn(shape)) for shape in shapes)
                self.all = nn.ParameterList(made)

            def forward(self, batch: torch.Tensor) -> Any:
                return torch.stack([param.sum() for param in self.all]).sum() + batch.sum()

        return Total(self.shapes)

    def torch_loss(self, model: Any, batch: Batch) -> Any:
        """Its mean loss."""
        import torch

        return model(torch.from_numpy(batch[0]))

    def keras_model(self) -> Any:
        """The network in Keras."""
        import keras

        class Total(keras.Model):  # type: ignore[misc]
            def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
                super().__init__()
                for shape in shapes:
                    self.add_weight(shape=shape, initializer="random_normal")
                self.built = True

        return Total(self.shapes)

    def keras_loss(self, model: Any, x: Any, y: Any) -> Any:
        """Its mean loss."""
        import tensorflow as tf

        # Each gradient differs, and is not known beforehand: TensorFlow would average equal ones
        # once, and known ones never.
        variables = model.trainable_variables
        sums = [
            tf.reduce_sum(variable) * (number + x[0]) for number, variable in enumerate(variables)
        ]
        return tf.add_n(sums)
