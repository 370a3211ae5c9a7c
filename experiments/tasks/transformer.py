"""The parts of a transformer, pre-norm, without dropout, as `torch.func.vmap` takes them.

A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv 1706.03762; norms before each
part, as in R. Xiong et al., "On Layer Normalization in the Transformer Architecture", ICML 2020.
"""

import math

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Attention with several heads.

    Args:
        width: of its inputs and its output.
        heads: how many; they divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, inputs: Tensor, memory: Tensor, hidden: Tensor) -> Tensor:
        """Attend from inputs to memory.

        Args:
            inputs: (batch, length, width).
            memory: (batch, memory's length, width).
            hidden: a boolean tensor of (length, memory's length), perhaps with the batch before
                it: what is not to be attended to.
        """
        query, key, value = (
            part.unflatten(-1, (self._heads, -1)).transpose(-2, -3)
            for part in (self.query(inputs), self.key(memory), self.value(memory))
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if hidden.dim() == 3:
            hidden = hidden.unsqueeze(1)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return self.out((weights @ value).transpose(-2, -3).flatten(-2))


class Block(nn.Module):
    """Attention to itself, if wanted attention to a memory, and two layers at each place."""

    def __init__(self, width: int, heads: int, *, to_memory: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.memory_norm = nn.LayerNorm(width) if to_memory else None
        self.memory_attention = Attention(width, heads) if to_memory else None
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self,
        inputs: Tensor,
        hidden: Tensor,
        memory: Tensor | None = None,
        hidden_memory: Tensor | None = None,
    ) -> Tensor:
        """Outputs of (batch, length, width); what is hidden as `Attention` has it."""
        normed = self.norm(inputs)
        inputs = inputs + self.attention(normed, normed, hidden)
        if self.memory_attention is not None and self.memory_norm is not None:
            inputs = inputs + self.memory_attention(self.memory_norm(inputs), memory, hidden_memory)
        return inputs + self.layers(inputs)


class Pieces(nn.Module):
    """Pieces of text to vectors and back, by one matrix; places have vectors too."""

    def __init__(self, pieces: int, places: int, width: int) -> None:
        super().__init__()
        self.pieces = nn.Embedding(pieces, width)
        self.places = nn.Embedding(places, width)
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.pieces.weight, std=width**-0.5)
        nn.init.normal_(self.places.weight, std=width**-0.5)

    def forward(self, text: Tensor) -> Tensor:
        """Vectors of (batch, length, width) of a text of (batch, length)."""
        return self.pieces(text) + self.places.weight[: text.shape[-1]]

    def scores(self, vectors: Tensor) -> Tensor:
        """Of each piece at each place, (batch, length, pieces)."""
        return self.norm(vectors) @ self.pieces.weight.T


def later(length: int) -> Tensor:
    """What each place of a text may not see: what comes after it; a mask of (length, length)."""
    return torch.ones(length, length, dtype=torch.bool).triu(1)
