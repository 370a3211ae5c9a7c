"""Putting an inner optimizer back to where it had taken no step: moments and step counts alike.

A step count that survived its moments would switch Adam's bias correction off.
"""

import inspect
from collections.abc import Iterable, Sequence
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


def reset(inner: torch.optim.Optimizer, params: Sequence[Tensor]) -> None:
    """Leave the inner optimizer as if it had taken no step of these parameters.

    Where zeros are that, the tensors stay and become zeros: a compiled step is compiled again
    whenever the entries of ``state`` come or go.
    """
    states = [(param, inner.state[param]) for param in params if param in inner.state]
    tensors = _to_be_zeros(inner, states)
    if tensors is None and len(params) == sum(len(group["params"]) for group in inner.param_groups):
        forget(inner)
    elif tensors is None:
        _leave_nothing(inner, params)
    elif tensors:
        torch._foreach_zero_(tensors)


def forget(inner: torch.optim.Optimizer) -> None:
    """`reset` of all parameters by leaving nothing, which is what any fresh optimizer has."""
    inner.state.clear()  # of what is no parameter of its any more too
    _leave_nothing(inner, [param for group in inner.param_groups for param in group["params"]])


def _leave_nothing(inner: torch.optim.Optimizer, params: Sequence[Tensor]) -> None:
    for param in params:
        inner.state.pop(param, None)
    if isinstance(inner, torch.optim.Adagrad):  # in torch, the one that fills its state when made
        fresh = type(inner)([{"params": list(params)}], **inner.defaults)
        inner.state.update(fresh.state)
    _restart_counts(inner)


def _to_be_zeros(
    inner: torch.optim.Optimizer, states: Iterable[tuple[Tensor, Any]]
) -> list[Tensor] | None:
    """The tensors to make zero, if that is the same as to have none."""
    if type(inner) not in _BEGIN_WITH_ZEROS:
        return None
    # SGD's first step takes the whole gradient for its momentum, and all others dampen it.
    if any(group.get("dampening", 0) != 0 for group in inner.param_groups):
        return None
    tensors: list[Tensor] = []
    for param, state in states:
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
    counts = counts_of(inner)
    for group in inner.param_groups:
        for key, value in counts.items():
            if key not in inner.defaults:
                group.pop(key, None)
            elif key in group:
                group[key] = value


def counts_of(inner: torch.optim.Optimizer) -> dict[str, Any]:
    """What the optimizer counts in its groups, and what each begins with."""
    options = _constructors_arguments(type(inner))
    if "lr" not in options or type(inner).__module__.startswith("torch."):
        return {}  # without "lr" its options come to it by other ways
    counts: dict[str, Any] = {
        key: value
        for key, value in inner.defaults.items()
        if key not in options and isinstance(value, int | float) and not isinstance(value, bool)
    }
    if "step" not in inner.defaults and any("step" in group for group in inner.param_groups):
        counts["step"] = None
    return counts


def _constructors_arguments(cls: type) -> frozenset[str]:
    constructors = [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)]
    names = [
        inspect.signature(made).parameters for made in constructors if made is not object.__init__
    ]
    return frozenset(name for of_one in names for name in of_one)
