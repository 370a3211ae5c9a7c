"""Language modelling with a small transformer, by AdamW: English novels and a manual."""

import math
import zlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.data import austen, libreoffice_help
from experiments.data.pieces import END, byte_pairs
from experiments.tasks.task import Batch, Forward
from experiments.tasks.transformer import Block, Pieces, later

PIECES = 1024
LENGTH = 64  # pieces of one example
WIDTH, HEADS, LAYERS = 96, 4, 2
BLOCK = 20_000  # characters; of twenty such blocks one is for validation and one for the test
LOOKED_AT = 512  # of the training examples, for the training loss


class Language:
    """Predicts the next piece of Jane Austen's novels and of LibreOffice's help."""

    name = "language"
    epochs = 1
    looks = 1
    batch = 4
    rates: tuple[float, ...] = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016)
    middle = 0.004
    selects = "validation loss"
    step_seconds = 0.013
    lengths: Tensor | None = None

    def __init__(self) -> None:
        pages = libreoffice_help.load("en-US").values()
        manual = "\n".join(text for page in pages for text in page.values())
        text = "\n".join([*austen.load().values(), manual])
        self.digest = f"{zlib.crc32(text.encode()):08x}"
        blocks = [text[at : at + BLOCK] for at in range(0, len(text), BLOCK)]
        parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
        for number, block in enumerate(blocks):
            parts[{0: "validation", 10: "test"}.get(number % 20, "train")].append(block)
        encoding = byte_pairs(parts["train"], PIECES)
        self._train, self._validation, self._test = (
            _examples([encoding.encode(block + END).ids for block in part])
            for part in parts.values()
        )
        self.size = len(self._train)

    def model(self) -> nn.Module:
        """A decoder of two layers, 326,000 parameters."""
        return Decoder()

    def inner(self, parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.1)

    def factor(self, progress: float) -> float:
        """Up in the first twentieth, and down as a cosine."""
        return min(1.0, 20 * progress) * (1 + math.cos(math.pi * progress)) / 2

    def examples(self, indices: Tensor) -> Batch:
        """Texts."""
        return (self._train[indices],)

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        """Cross-entropy of a piece, in nats."""
        (text,) = batch
        return F.cross_entropy(forward(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())

    def look(self, model: nn.Module) -> dict[str, float]:
        """Loss of both."""
        return {
            "training loss": self._measure(model, self._train[:LOOKED_AT]),
            "validation loss": self._measure(model, self._validation),
        }

    def test(self, model: nn.Module) -> dict[str, float]:
        """Loss on the rest."""
        return {"test loss": self._measure(model, self._test)}

    @torch.no_grad()
    def _measure(self, model: nn.Module, texts: Tensor) -> float:
        model.eval()
        parts = texts.split(64)
        losses = [self.loss(model, (part,)).item() * len(part) for part in parts]
        return sum(losses) / len(texts)


class Decoder(nn.Module):
    """Scores of the next piece from those before it, at every place of a text."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces = Pieces(PIECES, LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block(WIDTH, HEADS) for _ in range(LAYERS))

    def forward(self, text: Tensor) -> Tensor:
        """(batch, length, pieces) for a text of (batch, length)."""
        vectors = self.pieces(text)
        for block in self.blocks:
            vectors = block(vectors, later(text.shape[-1]))
        return self.pieces.scores(vectors)


def _examples(blocks: list[list[int]]) -> Tensor:
    """Texts of LENGTH + 1 pieces, each of which begins with the last one of that before it."""
    pieces = torch.tensor([piece for block in blocks for piece in block])
    number = (len(pieces) - 1) // LENGTH
    return torch.stack([pieces[at * LENGTH :][: LENGTH + 1] for at in range(number)])
