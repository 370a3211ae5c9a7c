"""A task of the experiments that takes no time: noise to be classified, with BatchNorm."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.tasks.task import Batch, Forward


class Small:
    """With SGD or AdamW."""

    name = "small"
    epochs = 2
    looks = 4
    batch = 4
    rates = (0.01, 0.02, 0.04, 0.08)
    middle = 0.02
    selects = "validation loss"
    step_seconds = 1e-3
    digest = "of noise"
    size = 4 * 4 * 15
    lengths: Tensor | None = None

    def __init__(self, inner: str = "SGD") -> None:
        self._inner = inner
        generator = torch.Generator().manual_seed(1)
        self._inputs = torch.randn(self.size, 6, generator=generator)
        self._labels = torch.randint(0, 3, (self.size,), generator=generator)

    def model(self) -> nn.Module:
        return nn.Sequential(
            *(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        )

    def inner(self, parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        if self._inner == "AdamW":
            return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.1)
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True, weight_decay=1e-3)

    def factor(self, progress: float) -> float:
        return 0.1 if progress > 0.6 else 1.0

    def examples(self, indices: Tensor) -> Batch:
        return self._inputs[indices], self._labels[indices]

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        inputs, labels = batch
        return F.cross_entropy(forward(inputs), labels)

    def look(self, model: nn.Module) -> dict[str, float]:
        loss = self.loss(model.eval(), (self._inputs, self._labels)).item()
        return {"training loss": loss, "validation loss": loss}

    def test(self, model: nn.Module) -> dict[str, float]:
        return {"test loss": self.look(model)["training loss"]}
