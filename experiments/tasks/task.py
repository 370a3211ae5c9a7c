"""What a task is to those who train on it."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

#: Tensors with one example in each place of their first dimension.
Batch: TypeAlias = tuple[Tensor, ...]
#: A model, or one worker's, as a function.
Forward: TypeAlias = Callable[..., Any]


class Task(Protocol):
    """Data, a model, an inner optimizer and what is measured.

    Attributes:
        name: of the task.
        epochs: passes over the training data.
        looks: how many times the losses are measured, evenly over the training.
        batch: examples of one worker's step.
        rates: the grid of learning rates, ascending, the same for every method.
        middle: where on the grid the search begins.
        selects: the validation figure by which a learning rate is chosen; the lower, the better.
        step_seconds: about what one worker's step takes on one core, for the plots.
        digest: a checksum of the data.
        size: examples to train on.
        lengths: of each example, where those of one step are to be about equally long.
    """

    name: str
    epochs: int
    looks: int
    batch: int
    rates: tuple[float, ...]
    middle: float
    selects: str
    step_seconds: float
    digest: str
    size: int
    lengths: Tensor | None

    def model(self) -> nn.Module:
        """A new one, by torch's random numbers."""

    def inner(self, parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        """The base optimizer."""

    def factor(self, progress: float) -> float:
        """The learning rate over its peak, where this part of the training is done."""

    def examples(self, indices: Tensor) -> Batch:
        """Those of the training data; ``indices`` of any shape, in the batch's first dimensions."""

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        """The mean loss of one worker's batch."""

    def look(self, model: nn.Module) -> dict[str, float]:
        """What is measured on the way: some of the training data, and the validation split."""

    def test(self, model: nn.Module) -> dict[str, float]:
        """What is measured once, at the end, on data that nothing was chosen by."""


def batches(task: Task, seed: int, epoch: int, workers: int, batch: int) -> Iterator[Tensor]:
    """Indices of (workers, batch) for each step of an epoch: the same for every method.

    Each worker's are disjoint from the others'; what does not fill a last step is left out.
    """
    generator = torch.Generator().manual_seed(1000 * seed + epoch)
    order = torch.randperm(task.size, generator=generator)
    number = steps_of(task, workers, batch)
    steps = order[: number * workers * batch]
    if task.lengths is not None:
        lengths = task.lengths[steps].float()
        # Sorted, but for noise that mixes neighbours; the steps then in any order.
        noise = torch.rand(len(lengths), generator=generator)
        steps = steps[(lengths + noise).argsort()]
        turns = torch.randperm(number, generator=generator)
        steps = steps.view(number, -1)[turns]
        within = torch.rand(steps.shape, generator=generator).argsort(1)
        steps = steps.gather(1, within)
    yield from steps.view(number, workers, batch)


def steps_of(task: Task, workers: int, batch: int) -> int:
    """Local steps of each worker in an epoch."""
    return task.size // (workers * batch)
