"""Fashion-MNIST with a convolutional network with BatchNorm, by SGD with Nesterov momentum."""

import itertools
import zlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.data import fashion_mnist
from experiments.tasks.task import Batch, Forward

VALIDATION = 5_000  # of the 60,000, which no training sees
LOOKED_AT = 5_000  # of the others, for the training loss
MEAN, DEVIATION = 0.2860, 0.3530  # of the training images


class Fashion:
    """As the paper trains on CIFAR-10: a warm-up, then steps down."""

    name = "fashion"
    epochs = 15
    looks = 15
    batch = 32
    rates: tuple[float, ...] = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
    middle = 0.1
    selects = "validation loss"
    step_seconds = 0.0045
    lengths: Tensor | None = None

    def __init__(self) -> None:
        images, labels, test_images, test_labels = fashion_mnist.load()
        self.digest = f"{zlib.crc32(images.numpy().tobytes()):08x}"
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        validation, train = order[:VALIDATION], order[VALIDATION:]
        self._train = _scaled(images[train]), labels[train]
        self._validation = _scaled(images[validation]), labels[validation]
        self._test = _scaled(test_images), test_labels
        self.size = len(train)

    def model(self) -> nn.Module:
        """Three convolutions, 34,000 parameters."""
        widths = (1, 16, 32, 64)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, 10))

    def inner(self, parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        """The paper's for CIFAR-10."""
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True, weight_decay=1e-4)

    def factor(self, progress: float) -> float:
        """Up in the first fifteenth; a tenth from the half on, a hundredth from three quarters."""
        steps_down = (progress >= 0.5) + (progress >= 0.75)
        return min(1.0, 15 * progress) * 0.1**steps_down

    def examples(self, indices: Tensor) -> Batch:
        """Images and labels."""
        images, labels = self._train
        return images[indices], labels[indices]

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        """Cross-entropy."""
        images, labels = batch
        return F.cross_entropy(forward(images), labels)

    def look(self, model: nn.Module) -> dict[str, float]:
        """Loss of both, and the accuracy."""
        images, labels = self._train
        train_loss, _ = _measure(model, images[:LOOKED_AT], labels[:LOOKED_AT])
        loss, accuracy = _measure(model, *self._validation)
        return {
            "training loss": train_loss,
            "validation loss": loss,
            "validation accuracy": accuracy,
        }

    def test(self, model: nn.Module) -> dict[str, float]:
        """Loss and accuracy on the 10,000."""
        loss, accuracy = _measure(model, *self._test)
        return {"test loss": loss, "test accuracy": accuracy}


def _scaled(images: Tensor) -> Tensor:
    return (images.float() / 255 - MEAN) / DEVIATION


@torch.no_grad()
def _measure(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    model.eval()
    logits = torch.cat([model(part) for part in images.split(500)])
    accuracy = (logits.argmax(1) == labels).double().mean()
    return F.cross_entropy(logits.double(), labels).item(), 100 * accuracy.item()
