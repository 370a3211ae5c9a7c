"""What happens to this rank's gradients before the inner step: they are unscaled or made dense."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from slowmo_hvd.torch.parameters import parameters_of


def overflowed(optimizer: torch.optim.Optimizer) -> bool:
    """Whether GradScaler found an infinite gradient on this rank.

    Before GradScaler calls ``step()`` of an optimizer that has ``_step_supports_amp_scaling``, it
    sets ``found_inf`` and ``grad_scale`` on it, and removes them afterwards.
    """
    found = optimizer.__dict__.get("found_inf")
    return found is not None and bool(found)


def unscale(optimizer: torch.optim.Optimizer) -> None:
    """Divide the gradients by GradScaler's scale, unless ``scaler.unscale_`` did so before."""
    scale: Any = optimizer.__dict__.get("grad_scale")
    if scale is None:
        return
    inverse = 1.0 / float(scale)
    for param in _with_gradient(optimizer):
        assert param.grad is not None
        param.grad.mul_(inverse)


def takes_sparse_only(inner: torch.optim.Optimizer) -> bool:
    """Whether the inner optimizer refuses dense gradients.

    Horovod's ``sparse_as_dense`` makes them dense to send them, and sparse again for the step.
    """
    return isinstance(inner, torch.optim.SparseAdam)


def densify(
    optimizer: torch.optim.Optimizer, closure: Callable[[], float] | None
) -> Callable[[], float] | None:
    """Make sparse gradients dense now, or with a closure each time it has computed them."""
    if closure is None:
        _make_dense(optimizer)
        return None

    def dense_closure() -> float:
        loss = closure()
        _make_dense(optimizer)
        return loss

    return dense_closure


def _make_dense(optimizer: torch.optim.Optimizer) -> None:
    for param in _with_gradient(optimizer):
        if param.grad is not None and param.grad.is_sparse:
            param.grad = param.grad.to_dense()


def _with_gradient(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    return (param for param in parameters_of(optimizer) if param.grad is not None)
