"""Checks of DistributedOptimizer's arguments that need torch."""

import sys
from collections import Counter
from collections.abc import Iterable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from slowmo_hvd.torch.wrappers import layers


def check_inner(optimizer: Any) -> None:
    """Raise unless ``optimizer`` is a torch optimizer that is not distributed yet.

    Raises:
        TypeError: it is not a torch optimizer.
        ValueError: it is distributed already, was prepared by Accelerate, or fails `check_groups`.
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
    check_groups(optimizer)


def check_groups(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError unless each group has a learning rate and whole parameters.

    Parameters of integers are accepted: they need no gradient, so they are not trained.
    """
    name = type(optimizer).__name__
    for index, group in enumerate(optimizer.param_groups):
        if "lr" not in group:
            raise ValueError(
                f"{name} has no 'lr' in parameter group {index}; the slow momentum is scaled by "
                "the learning rate, so set group['lr']"
            )
        if not isinstance(group["lr"], Real | Tensor):
            raise ValueError(
                f"{name} has lr={group['lr']!r} in parameter group {index}; the slow momentum is "
                "scaled by the learning rate, so it must be a number: give lr=..., and "
                "relative_step=False to an Adafactor that would set its own"
            )
        for place, param in enumerate(group["params"]):
            if _is_sharded(param):
                raise ValueError(
                    f"parameter {place} of group {index} is a {type(param).__name__}, of which "
                    "this rank holds a part, and SlowMo averages whole parameters: make the "
                    "optimizer from a model without fully_shard, FSDP or tensor parallelism"
                )


def _is_sharded(param: Tensor) -> bool:
    # If there is a DTensor, its module is imported already. Importing it here would take long.
    module = sys.modules.get("torch.distributed.tensor")
    of_fsdp = getattr(param, "_is_flat_param", False)
    return bool(of_fsdp) or (module is not None and isinstance(param, module.DTensor))


def check_names(
    named_parameters: Iterable[tuple[str, Tensor]] | None, optimizer: torch.optim.Optimizer
) -> list[tuple[str, Tensor]]:
    """The names; raise unless they are unique and cover all of the optimizer's parameters.

    They are checked as in Horovod's DistributedOptimizer. If none are given, torch may have some,
    for an optimizer that was made from named parameters.
    """
    if named_parameters is None:
        groups = [group for group in optimizer.param_groups if "param_names" in group]
        return [pair for g in groups for pair in zip(g["param_names"], g["params"], strict=True)]
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
    return named
