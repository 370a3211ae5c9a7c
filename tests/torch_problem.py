"""The tiny problem of `problem`, for torch optimizers."""

from collections.abc import Callable, Sequence
from typing import Any

import problem
import torch
from problem import X0, Array


def parameters(dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    """The parameters at X0, one for each group."""
    return [torch.nn.Parameter(torch.tensor(value, dtype=dtype)) for value in X0]


def groups(params: Sequence[torch.nn.Parameter]) -> list[dict[str, Any]]:
    """The parameter groups of an optimizer, for `take_step`."""
    return [{"params": [param]} for param in params]


def take_step(
    optimizer: torch.optim.Optimizer,
    lrs: Sequence[float],
    gradient_at: Callable[[list[Array]], Sequence[Array]],
) -> None:
    """One step of an optimizer over `groups`, at these learning rates and gradients."""
    params = [group["params"][0] for group in optimizer.param_groups]
    gradients = gradient_at([param.detach().double().numpy() for param in params])
    for group, lr, param, value in zip(optimizer.param_groups, lrs, params, gradients, strict=True):
        group["lr"] = lr
        param.grad = torch.tensor(value, dtype=param.dtype)
    optimizer.step()


def assert_close(actual: Sequence[Any], expected: Sequence[Any], tolerance: float) -> None:
    """As `problem.assert_close`, of tensors too."""
    arrays = (
        [v.detach().double() if isinstance(v, torch.Tensor) else v for v in values]
        for values in (actual, expected)
    )
    problem.assert_close(*arrays, tolerance=tolerance)
