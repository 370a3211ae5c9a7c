"""A byte-level transformer of 10M parameters, on the source of Python's standard library.

That text is on every machine, and the same for one version of Python.
"""

import sysconfig
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders.protocol import Batch, Setting

WIDTH = 368
LAYERS = 6
HEADS = 8
CONTEXT = 64  # bytes


class Transformer:
    """The network and its text."""

    name = "transformer"
    parameters = 10_000_000
    lr = 5e-4
    target = 2.6  # nats a byte
    batch_size = 8
    adaptive = True

    @cached_property
    def _text(self) -> np.ndarray:
        """The modules at the top of the library, in the order of their names."""
        files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        return np.frombuffer(b"\n".join(file.read_bytes() for file in files), np.uint8)

    def _cut(self, text: np.ndarray, draw: np.random.Generator, count: int) -> Batch:
        starts = draw.integers(len(text) - CONTEXT, size=count)
        pieces = np.stack([text[at : at + CONTEXT + 1] for at in starts]).astype("int64")
        return pieces[:, :-1].copy(), pieces[:, 1:].copy()

    def batch(self, setting: Setting, step: int) -> Batch:
        """Pieces of the first nine tenths."""
        draw = np.random.default_rng((setting.seed, setting.rank, step))
        return self._cut(self._text[: len(self._text) * 9 // 10], draw, self.batch_size)

    def held_out(self) -> Sequence[Batch]:
        """Pieces of the last tenth."""
        draw = np.random.default_rng(0)
        return [self._cut(self._text[len(self._text) * 9 // 10 :], draw, 32) for _ in range(4)]

    def torch_model(self) -> Any:
        """The network in PyTorch."""
        import torch
        from torch import nn

        class Network(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bytes = nn.Embedding(256, WIDTH)
                self.places = nn.Embedding(CONTEXT, WIDTH)
                layer = nn.TransformerEncoderLayer(
                    WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
                )
                self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
                self.out = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256))
                mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
                self.register_buffer("mask", mask, persistent=False)

            def forward(self, text: torch.Tensor) -> Any:
                hidden = self.bytes(text) + self.places.weight
                return self.out(self.layers(hidden, mask=self.mask, is_causal=True))

        return Network()

    def torch_loss(self, model: Any, batch: Batch) -> Any:
        """Its mean loss."""
        import torch

        text, following = map(torch.from_numpy, batch)
        return torch.nn.functional.cross_entropy(model(text).transpose(1, 2), following)

    def keras_model(self) -> Any:
        """The network in Keras."""
        import keras
        from keras import layers

        class Places(layers.Layer):  # type: ignore[misc]
            def build(self, shape: Any) -> None:
                self.table = self.add_weight(shape=(CONTEXT, WIDTH), initializer="uniform")

            def call(self, x: Any) -> Any:
                return x + self.table

        text = keras.Input((CONTEXT,), dtype="int64")
        x = Places()(layers.Embedding(256, WIDTH)(text))
        for _ in range(LAYERS):
            normal = layers.LayerNormalization(epsilon=1e-5)(x)
            attend = layers.MultiHeadAttention(HEADS, WIDTH // HEADS)
            x = layers.Add()([x, attend(normal, normal, use_causal_mask=True)])
            normal = layers.LayerNormalization(epsilon=1e-5)(x)
            inner = layers.Dense(4 * WIDTH, activation="relu")(normal)
            x = layers.Add()([x, layers.Dense(WIDTH)(inner)])
        return keras.Model(text, layers.Dense(256)(layers.LayerNormalization(epsilon=1e-5)(x)))

    def keras_loss(self, model: Any, x: Any, y: Any) -> Any:
        """Its mean loss."""
        import tensorflow as tf

        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x, training=True))
        return tf.reduce_mean(losses)
