"""Checks of DistributedOptimizer's arguments that need torch to be made."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from slowmo_hvd.torch.wrappers import layers


def check_inner(optimizer: Any) -> None:
    """Raise unless ``optimizer`` is a torch optimizer that is not distributed yet.

    Raises:
        TypeError: it is no torch optimizer.
        ValueError: it is distributed already, has no learning rate, or holds parameters that
            are not floating point.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    if any(hasattr(type(layer), "skip_synchronize") for layer in layers(optimizer)):
        raise ValueError(
            "optimizer is a DistributedOptimizer already; give the optimizer inside it, since "
            "SlowMo takes the place of Horovod's gradient averaging"
        )
    if type(optimizer).__module__.startswith("accelerate."):
        raise ValueError(
            "optimizer was prepared by Accelerate, which hides its class and leaves out steps; "
            "give DistributedOptimizer(optimizer) to accelerator.prepare instead"
        )
    for index, group in enumerate(optimizer.param_groups):
        if "lr" not in group:
            raise ValueError(
                f"{type(optimizer).__name__} has no 'lr' in parameter group {index}; the slow "
                "momentum is scaled by the learning rate, so set group['lr']"
            )
        for param in group["params"]:
            if not (param.is_floating_point() or param.is_complex()):
                raise ValueError(
                    f"parameter group {index} holds a parameter of {param.dtype}, and only "
                    "floating-point parameters can be averaged"
                )


def check_names(
    named_parameters: Iterable[tuple[str, Tensor]] | None, optimizer: torch.optim.Optimizer
) -> None:
    """Raise unless the names are unique and cover all of the optimizer's parameters.

    As Horovod's DistributedOptimizer checks them; SlowMo itself goes by position.
    """
    if named_parameters is None:
        return
    try:
        named = list(named_parameters)
    except TypeError:
        raise TypeError(
            f"named_parameters must be (name, parameter) pairs, got {named_parameters!r}"
        ) from None
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in named):
        raise ValueError(
            "named_parameters must be a sequence of (name, parameter) tuples, usually "
            "model.named_parameters()"
        )
    twice = [name for name, count in Counter(name for name, _ in named).items() if count > 1]
    if twice:
        raise ValueError(f"names in named_parameters must be unique, got twice: {', '.join(twice)}")
    covered = {id(param) for _, param in named}
    unnamed = [
        f"parameter {where} of group {index}, shape {tuple(param.shape)}"
        for index, group in enumerate(optimizer.param_groups)
        for where, param in enumerate(group["params"])
        if id(param) not in covered
    ]
    if unnamed:
        raise ValueError(
            f"named_parameters lacks {len(unnamed)} of the optimizer's parameters, the first: "
            f"{unnamed[0]}; give model.named_parameters() of the same model, or leave it out"
        )
