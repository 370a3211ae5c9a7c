"""Set an inner optimizer back to before its first step: both moments and step counts.

If the step count were kept while the moments are reset, Adam's bias correction would be off.
"""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

# Their state begins as zeros. That of others does not: zeros would stop Rprop for ever.
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

    If zeros have that effect, the tensors stay and become zeros, because a compiled step is
    compiled again whenever entries of ``state`` come or go.
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
    """`reset` all parameters by leaving no state, as in any new optimizer."""
    inner.state.clear()  # also the state of former parameters
    _leave_nothing(inner, [param for group in inner.param_groups for param in group["params"]])


def _leave_nothing(inner: torch.optim.Optimizer, params: Sequence[Tensor]) -> None:
    for param in params:
        inner.state.pop(param, None)
    if isinstance(inner, torch.optim.Adagrad):  # the only one in torch with a state from the start
        fresh = type(inner)([{"params": list(params)}], **inner.defaults)
        inner.state.update(fresh.state)
    _restart_counts(inner)


def _to_be_zeros(
    inner: torch.optim.Optimizer, states: Iterable[tuple[Tensor, Any]]
) -> list[Tensor] | None:
    """The tensors to set to zero, if that has the same effect as having none."""
    if type(inner) not in _BEGIN_WITH_ZEROS:
        return None
    # SGD's first step takes the whole gradient as its momentum, and all later ones dampen it.
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
    """Whether the next step would make such a tensor. Not if the model was cast or moved since."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.requires_grad:
        return False
    if value.dim() == 0 and param.dim() > 0:  # a step count
        return True
    return (value.dtype, value.device) == (param.dtype, param.device)


def _restart_counts(inner: torch.optim.Optimizer) -> None:
    """Undo what some optimizers count in their groups, such as ``k`` of schedule-free ones.

    A number in the defaults that no constructor takes is a count and not an option. So is a "step"
    that was added later. torch's own optimizers count only in the state.
    """
    counts = counts_of(inner)
    for group in inner.param_groups:
        for key, value in counts.items():
            if key not in inner.defaults:
                group.pop(key, None)
            elif key in group:
                group[key] = value


def counts_of(inner: torch.optim.Optimizer) -> dict[str, Any]:
    """The counts that the optimizer keeps in its groups, and the value with which each begins."""
    options = _constructors_arguments(type(inner))
    if "lr" not in options or type(inner).__module__.startswith("torch."):
        return {}  # without "lr" it gets its options in another way
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
