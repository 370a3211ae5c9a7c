"""Putting an inner optimizer back to where it had taken no step: moments and step counts alike.

A step count that survived its moments would switch Adam's bias correction off.
"""

import inspect
from typing import Any

import torch
from torch import Tensor

# Their first step finds zeros. Not so of the others: zeros would stop Rprop for ever.
_BEGIN_WITH_ZEROS = (
    torch.optim.SGD,
    torch.optim.Adadelta,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.Muon,
    torch.optim.RAdam,
    torch.optim.RMSprop,
)


def reset(inner: torch.optim.Optimizer) -> None:
    """Leave the inner optimizer as if it had taken no step.

    Where zeros are that, the tensors stay and become zeros: a compiled step is compiled again
    whenever the entries of ``state`` come or go.
    """
    tensors = _to_be_zeros(inner)
    if tensors is None:
        forget(inner)
    elif tensors:
        torch._foreach_zero_(tensors)


def forget(inner: torch.optim.Optimizer) -> None:
    """`reset` by leaving nothing, which is what a fresh optimizer of any class has."""
    inner.state.clear()
    if isinstance(inner, torch.optim.Adagrad):  # in torch, the one that fills its state when made
        fresh = type(inner)(
            [{"params": group["params"]} for group in inner.param_groups], **inner.defaults
        )
        inner.state.update(fresh.state)
    _restart_counts(inner)


def _to_be_zeros(inner: torch.optim.Optimizer) -> list[Tensor] | None:
    """The tensors to make zero, if that is the same as to have none."""
    if type(inner) not in _BEGIN_WITH_ZEROS:
        return None
    # SGD's first step takes the whole gradient for its momentum, and all others dampen it.
    if any(group.get("dampening", 0) != 0 for group in inner.param_groups):
        return None
    tensors: list[Tensor] = []
    for param, state in inner.state.items():
        values = [value for value in state.values() if value is not None]
        if not all(_is_as_new(value, param) for value in values):
            return None
        tensors += values
    return tensors


def _is_as_new(value: Any, param: Tensor) -> bool:
    """Whether the next step would make such a tensor: not if the model was cast or moved since."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.requires_grad:
        return False
    if value.dim() == 0 and param.dim() > 0:  # a step count
        return True
    return (value.dtype, value.device) == (param.dtype, param.device)


def _restart_counts(inner: torch.optim.Optimizer) -> None:
    """Take back what some optimizers count in their groups, such as schedule-free ones' ``k``.

    A number among the defaults that no constructor takes is not an option but a count, and so is
    a "step" that was added later. torch's own count in the state alone.
    """
    options = _constructors_arguments(type(inner))
    if "lr" not in options or type(inner).__module__.startswith("torch."):
        return  # without "lr" its options come to it by other ways
    counts = {
        key: value
        for key, value in inner.defaults.items()
        if key not in options and isinstance(value, int | float) and not isinstance(value, bool)
    }
    for group in inner.param_groups:
        group.update((key, value) for key, value in counts.items() if key in group)
        if "step" not in inner.defaults:
            group.pop("step", None)


def _constructors_arguments(cls: type) -> frozenset[str]:
    constructors = [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)]
    names = [
        inspect.signature(made).parameters for made in constructors if made is not object.__init__
    ]
    return frozenset(name for of_one in names for name in of_one)
