"""ResNet-50 on small images: 25.6M parameters in 161 tensors.

Its norms are group norms: the contenders treat the running statistics of batch norms in different
ways, and that is not what is compared. The images are scikit-learn's handwritten digits, enlarged.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.contenders.protocol import Batch, Setting

BLOCKS = {64: 3, 128: 4, 256: 6, 512: 3}  # of each width
WIDER = 4  # a block's output over its width
CLASSES = 1000  # as ImageNet has; the digits use ten
GROUPS = 32


class Convnet:
    """The network and its images."""

    name = "convnet"
    parameters = 25_557_032
    lr = 0.0025
    target = 0.5
    batch_size = 32
    adaptive = False

    @cached_property
    def _images(self) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))
        large = np.kron(digits.images[order] / 8 - 1, np.ones((1, 4, 4)))
        return np.repeat(large[..., None], 3, -1).astype("float32"), digits.target[order]

    def batch(self, setting: Setting, step: int) -> Batch:
        """Images of this rank's own."""
        images, labels = self._images
        own = np.arange(setting.rank, len(labels) * 4 // 5, setting.ranks)
        draw = np.random.default_rng((setting.seed, setting.rank, step))
        chosen = draw.choice(own, self.batch_size, replace=False)
        return images[chosen], labels[chosen]

    def held_out(self) -> Sequence[Batch]:
        """The first of the last fifth."""
        images, labels = self._images
        first = len(labels) * 4 // 5
        starts = range(first, first + 128, 32)
        return [(images[at : at + 32], labels[at : at + 32]) for at in starts]

    def torch_model(self) -> Any:
        """The network in PyTorch."""
        from torch import nn

        class Block(nn.Module):
            def __init__(self, inputs: int, width: int, stride: int) -> None:
                super().__init__()
                outputs = width * WIDER
                self.path = nn.Sequential(
                    *_convolution(inputs, width, 1),
                    nn.ReLU(),
                    *_convolution(width, width, 3, stride),
                    nn.ReLU(),
                    *_convolution(width, outputs, 1),
                )
                changes = stride > 1 or inputs != outputs
                self.around = nn.Sequential(
                    *(_convolution(inputs, outputs, 1, stride) if changes else [])
                )
                nn.init.zeros_(self.path[-1].weight)  # each block begins as the identity

            def forward(self, x: Any) -> Any:
                return nn.functional.relu(self.path(x) + self.around(x))

        def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
            layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            return [layer, nn.GroupNorm(GROUPS, outputs)]

        layers = [*_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        inputs = 64
        for width, count in BLOCKS.items():
            for number in range(count):
                layers.append(Block(inputs, width, 2 if number == 0 and width > 64 else 1))
                inputs = width * WIDER
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES)]
        return nn.Sequential(*layers)

    def torch_loss(self, model: Any, batch: Batch) -> Any:
        """Its mean loss."""
        import torch

        images, labels = map(torch.from_numpy, batch)
        return torch.nn.functional.cross_entropy(model(images.permute(0, 3, 1, 2)), labels)

    def keras_model(self) -> Any:
        """The network in Keras."""
        import keras

        def convolution(
            x: Any, outputs: int, size: int, stride: int = 1, scale: str = "ones"
        ) -> Any:
            x = keras.layers.Conv2D(
                outputs,
                size,
                stride,
                padding="same",
                use_bias=False,
                kernel_initializer=keras.initializers.VarianceScaling(
                    2.0, "fan_out", "untruncated_normal"
                ),
            )(x)
            return keras.layers.GroupNormalization(GROUPS, gamma_initializer=scale)(x)

        def block(x: Any, width: int, stride: int) -> Any:
            path = keras.layers.ReLU()(convolution(x, width, 1))
            path = keras.layers.ReLU()(convolution(path, width, 3, stride))
            path = convolution(path, width * WIDER, 1, scale="zeros")  # begins as the identity
            if stride > 1 or x.shape[-1] != width * WIDER:
                x = convolution(x, width * WIDER, 1, stride)
            return keras.layers.ReLU()(keras.layers.Add()([path, x]))

        images = keras.Input((32, 32, 3))
        x = keras.layers.ReLU()(convolution(images, 64, 7, 2))
        x = keras.layers.MaxPooling2D(3, 2, padding="same")(x)
        for width, count in BLOCKS.items():
            for number in range(count):
                x = block(x, width, 2 if number == 0 and width > 64 else 1)
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(images, keras.layers.Dense(CLASSES)(x))

    def keras_loss(self, model: Any, x: Any, y: Any) -> Any:
        """Its mean loss."""
        import tensorflow as tf

        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x, training=True))
        return tf.reduce_mean(losses)
