"""Loads the inner optimizer's state: completely, or not at all and with a ValueError."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from slowmo_hvd.core.form import array_form, group_difference
from slowmo_hvd.core.state import refusal
from slowmo_hvd.torch.parameters import parameters_of


def tensor_form(value: Any) -> str | None:
    """The form of a tensor in an optimizer's state, as `slowmo_hvd.core.form` compares it."""
    if not isinstance(value, Tensor):
        return array_form(value)  # an array where a tensor is expected
    form = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if type(value) is not Tensor:
        form = f"{type(value).__name__} {form}"
    if value.layout != torch.strided:
        form += f" {str(value.layout).removeprefix('torch.')}"
    return f"{form} without values" if value.is_meta else form


@contextlib.contextmanager
def unchanged_on_error(inner: torch.optim.Optimizer) -> Iterator[None]:
    """Set the optimizer back to what it was if loading fails.

    torch's own loading replaces the state and the groups. An optimizer with its own loading may
    write into the existing dicts. The tensors in them are assumed not to change.
    """
    attributes = dict(vars(inner))
    groups = [(group, dict(group)) for group in inner.param_groups]
    states = [(param, of, dict(of)) for param, of in inner.state.items() if isinstance(of, dict)]
    listed, keyed = list(inner.param_groups), dict(inner.state)
    try:
        yield
    except BaseException:
        vars(inner).clear()
        vars(inner).update(attributes)
        inner.param_groups[:] = listed
        inner.state.clear()
        inner.state.update(keyed)
        for group, options in groups:
            group.clear()
            group.update(options)
        for _, of, values in states:
            of.clear()
            of.update(values)
        raise


def load_inner(inner: torch.optim.Optimizer, state_dict: dict[str, Any], *, ours: bool) -> None:
    """Load the inner optimizer's own state.

    Args:
        inner: the optimizer.
        state_dict: its state, without the slow state.
        ours: whether it was saved beside a slow state, so that its parameters are 0, 1, 2, ...

    Raises:
        ValueError: it does not fit, according to the optimizer or to the options that it has now.
    """
    if type(inner).load_state_dict is torch.optim.Optimizer.load_state_dict:
        wrong = _misnumbered(state_dict, in_order=ours)
        if wrong is not None:
            raise refusal(wrong)
    before = [dict(group) for group in inner.param_groups]
    try:
        inner.load_state_dict(state_dict)
    except Exception as error:  # of any type: an optimizer can have its own loading
        raise refusal(
            f"the inner optimizer {type(inner).__name__} does not take its part of it "
            f"({type(error).__name__}: {error}); take a checkpoint of this optimizer and model"
        ) from error
    wrong = group_difference(before, inner.param_groups)
    if wrong is not None:
        raise refusal(wrong)
    if ours and type(inner).load_state_dict is torch.optim.Optimizer.load_state_dict:
        _uncast_scalars(inner, state_dict["state"])


def _uncast_scalars(inner: torch.optim.Optimizer, saved: Mapping[Any, Any]) -> None:
    """Set scalars back to the dtype in which they were saved.

    torch casts everything except "step" to the parameter's dtype, though the optimizers make
    scalars in float32. Each resume would round NAdam's product of momenta to bfloat16.
    """
    for number, param in enumerate(parameters_of(inner)):
        for key, value in saved.get(number, {}).items():
            if isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point():
                loaded = inner.state[param][key]
                if isinstance(loaded, Tensor) and loaded.dtype != value.dtype:
                    inner.state[param][key] = value.to(loaded.device, copy=True)


def _misnumbered(state_dict: dict[str, Any], *, in_order: bool) -> str | None:
    """Why torch would give the state of some parameter to none, or to several."""
    groups, state = state_dict.get("param_groups"), state_dict.get("state")
    if not isinstance(groups, list) or not isinstance(state, Mapping):
        return "its state is no dict or its param_groups are no list"
    if not all(isinstance(group, Mapping) and _numbers(group) is not None for group in groups):
        return "a parameter group does not list its parameters"
    numbers = [number for group in groups for number in group["params"]]
    if len(set(numbers)) != len(numbers):
        return "a parameter stands in its param_groups twice"
    if in_order and numbers != list(range(len(numbers))):
        return "the parameters in its param_groups are not numbered in order"
    strange = set(state) - set(numbers)
    return f"it has a state for {sorted(map(str, strange))}, no parameters" if strange else None


def _numbers(group: Mapping[str, Any]) -> list[Any] | None:
    listed = group.get("params")
    fine = isinstance(listed, list) and all(isinstance(number, int | str) for number in listed)
    return listed if fine else None
