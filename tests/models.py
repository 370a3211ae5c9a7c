"""Tiny models and data for the tests: every rank has the same model and its own data."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import horovod.torch as hvd
import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """3 → 4 → 2 through two matrices and no biases, which even Muon takes."""

    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(3, 4, generator=generator).to(dtype) / 2)
        self.second = nn.Parameter(torch.randn(4, 2, generator=generator).to(dtype) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.to(self.first.dtype) @ self.first) @ self.second


class Bag(nn.Module):
    """An embedding of 8 words, with sparse gradients, and nothing else."""

    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        words = torch.randn(8, 2, generator=generator).to(dtype) / 2
        self.words = nn.Embedding(8, 2, _weight=words, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        chosen: Tensor = self.words((x * 100).long().remainder(8)).sum(dim=1)
        return chosen


def loss_of(model: nn.Module, step: int, rank: int | None = None) -> Tensor:
    """The loss of the batch that ``rank`` (this one) sees in step ``step``."""
    rank = hvd.rank() if rank is None else rank
    generator = torch.Generator().manual_seed(1000 * rank + step)
    x = torch.randn(5, 3, generator=generator)
    target = torch.randn(5, 2, generator=generator)
    return (model(x).float() - target).square().mean()


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: Iterable[int],
    *,
    after_step: Callable[[], object] = lambda: None,
    closure: bool = False,
) -> None:
    """The loop that everybody writes, over the batches numbered ``steps``."""

    def compute(step: int) -> float:
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        return loss.item()

    for step in steps:
        if closure:
            optimizer.step(functools.partial(compute, step))
        else:
            compute(step)
            optimizer.step()
        after_step()


def number(value: float, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    """A model of one weight."""
    return nn.Parameter(torch.tensor([value], dtype=dtype))


def step_with(optimizer: torch.optim.Optimizer, *gradients: float | None) -> None:
    """One step with these gradients, one for each parameter in the optimizer's order."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = None if gradient is None else torch.full_like(param, gradient)
    optimizer.step()


def weights(params: nn.Module | Sequence[Tensor]) -> list[Tensor]:
    """Copies of a model's parameters."""
    tensors = params.parameters() if isinstance(params, nn.Module) else params
    return [tensor.detach().clone() for tensor in tensors]


def same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Whether two lists of tensors are equal bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def identical(ours: Any, theirs: Any) -> bool:
    """Whether two nested structures, such as states, are equal, tensors bit for bit."""
    if isinstance(ours, Tensor):
        return isinstance(theirs, Tensor) and ours.dtype == theirs.dtype and ours.equal(theirs)
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(identical(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(identical, ours, theirs))
    return bool(ours == theirs)
