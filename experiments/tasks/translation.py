"""English to German with a small transformer, by Adam."""

import zlib
from collections.abc import Iterable, Sequence

import sacrebleu
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.data import translations
from experiments.data.pieces import byte_pairs
from experiments.data.translations import Pair
from experiments.tasks.task import Batch, Forward
from experiments.tasks.transformer import Block, Pieces, later

PIECES = 2048  # of both languages
LENGTH = 32  # pieces of a sentence at most; those that are longer, a fifth, are left out
WIDTH, HEADS, LAYERS = 64, 4, 2
END = 0  # the piece before and after each sentence, and in what follows a short one
LOOKED_AT = 2_000  # of the training pairs, for the training loss


class Translation:
    """As the paper trains on WMT'16: a transformer, Adam, a warm-up and the inverse square root."""

    name = "translation"
    epochs = 3
    looks = 5
    batch = 4
    rates: tuple[float, ...] = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016)
    middle = 0.004
    selects = "validation loss"
    step_seconds = 0.010

    def __init__(self) -> None:
        pairs = translations.load()
        texts = [side for pair in pairs["train"] for side in pair[:2]]
        self.digest = f"{zlib.crc32(''.join(texts).encode()):08x}"
        self._encoding = byte_pairs(texts, PIECES)
        self._train, _ = self._encode(pairs["train"])
        self._validation, _ = self._encode(pairs["validation"])
        self._test, self._references = self._encode(pairs["test"])
        self.lengths: Tensor | None = torch.stack(
            [(part != END).sum(1) for part in self._train]
        ).amax(0)
        self.size = len(self._train[0])

    def model(self) -> nn.Module:
        """Two layers each to read and to write, 0.37 million parameters."""
        return Translator()

    def inner(self, parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        """Adam, with the moments' factors of Vaswani et al."""
        return torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.98), fused=True)

    def factor(self, progress: float) -> float:
        """Up in the first twentieth, then as the inverse square root."""
        return min(20 * progress, (20 * progress) ** -0.5) if progress else 0.0

    def examples(self, indices: Tensor) -> Batch:
        """English and German sentences, as wide as the longest."""
        return _narrowed(*(part[indices] for part in self._train))

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        """Cross-entropy of a German piece, in nats."""
        english, german = batch
        scores = forward(english, german[:, :-1])
        wanted = german[:, 1:]
        # The first END after the sentence counts, those that fill the row do not.
        counts = (german[:, :-1] != END) | (torch.arange(wanted.shape[1]) == 0)
        losses = F.cross_entropy(scores.flatten(0, 1), wanted.flatten(), reduction="none")
        return (losses * counts.flatten()).sum() / counts.sum()

    def look(self, model: nn.Module) -> dict[str, float]:
        """Loss of both."""
        some = tuple(part[:LOOKED_AT] for part in self._train)
        return {
            "training loss": self._measure(model, some),
            "validation loss": self._measure(model, self._validation),
        }

    def test(self, model: nn.Module) -> dict[str, float]:
        """Loss, and BLEU of greedy translations."""
        translated = [
            text
            for part in self._test[0].split(256)
            for text in self._encoding.decode_batch(greedy(model, part).tolist())
        ]
        return {
            "test loss": self._measure(model, self._test),
            "BLEU": sacrebleu.corpus_bleu(translated, [self._references]).score,
        }

    def _encode(self, pairs: Sequence[Pair]) -> tuple[Batch, list[str]]:
        """Both sides, (number, LENGTH + 2), between ENDs; and the German texts."""
        sides = zip(*(pair[:2] for pair in pairs), strict=True)
        encoded = zip(*(self._encoding.encode_batch(side) for side in sides), strict=True)
        rows: tuple[list[list[int]], list[list[int]]] = [], []
        texts = []
        for pair, both in zip(pairs, encoded, strict=True):
            if max(len(side) for side in both) <= LENGTH:
                texts.append(pair.german)
                for of_side, side in zip(rows, both, strict=True):
                    filling = [END] * (LENGTH + 1 - len(side))
                    of_side.append([END, *side.ids, *filling])
        return tuple(torch.tensor(of_side) for of_side in rows), texts

    @torch.no_grad()
    def _measure(self, model: nn.Module, pairs: Batch) -> float:
        model.eval()
        losses = pieces = 0.0
        order = (pairs[1] != END).sum(1).argsort()
        for part in order.split(128):
            batch = _narrowed(*(side[part] for side in pairs))
            counted = ((batch[1] != END).sum() + len(part)).item()
            losses += self.loss(model, batch).item() * counted
            pieces += counted
        return losses / pieces


class Translator(nn.Module):
    """Scores of the next German piece, at every place."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces = Pieces(PIECES, LENGTH + 2, WIDTH)
        self.reading = nn.ModuleList(Block(WIDTH, HEADS) for _ in range(LAYERS))
        self.writing = nn.ModuleList(Block(WIDTH, HEADS, to_memory=True) for _ in range(LAYERS))

    def forward(self, english: Tensor, german: Tensor) -> Tensor:
        """(batch, length, pieces), of two texts of (batch, length)."""
        return self.pieces.scores(self.written(german, *self.read(english)))

    def read(self, english: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of the English text, and which of its places are not to be attended to."""
        filling = ((english == END) & (torch.arange(english.shape[-1]) > 0)).unsqueeze(-2)
        memory = self.pieces(english)
        for block in self.reading:
            memory = block(memory, filling)
        return memory, filling

    def written(self, german: Tensor, memory: Tensor, filling: Tensor) -> Tensor:
        """Vectors of the German text, (batch, length, width)."""
        vectors = self.pieces(german)
        for block in self.writing:
            vectors = block(vectors, later(german.shape[-1]), memory, filling)
        return vectors


@torch.no_grad()
def greedy(model: nn.Module, english: Tensor) -> Tensor:
    """Translations, (number, length), of the best piece at each place; END where they are over."""
    assert isinstance(model, Translator)
    model.eval()
    german = torch.full((len(english), 1), END)
    over = torch.zeros(len(english), dtype=torch.bool)
    memory, filling = model.read(english)
    for _ in range(LENGTH):
        last = model.written(german, memory, filling)[:, -1]
        following = model.pieces.scores(last).argmax(-1).masked_fill(over, END)
        german = torch.cat([german, following.unsqueeze(1)], 1)
        over |= following == END
        if over.all():
            break
    return german[:, 1:]


def _narrowed(*sides: Tensor) -> Batch:
    """As wide as the longest sentence and the ENDs around it."""
    return tuple(side[..., : int((side != END).sum(-1).max()) + 2] for side in sides)
