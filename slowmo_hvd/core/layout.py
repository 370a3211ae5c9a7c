"""The form of an inner optimizer's state: which values it holds, of which types and shapes.

Frameworks load moments of another shape, or none, without a word, and fail or go wrong in a later
step. So the form is saved beside the slow state, as builtins, and compared before loading.
"""

import json
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any


def layout_text(value: Any) -> str:
    """`layout_of`, as JSON: were it saved as a dict, pickle would keep one string for a key in it
    and in the state, so that one damaged byte changed both alike.
    """
    return json.dumps(layout_of(value))


def layout_of(value: Any) -> Any:
    """The form of a nested state: containers as they are, "float32[3, 4]" or "int" for a leaf."""
    if isinstance(value, Mapping):
        return {repr(key): layout_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [layout_of(item) for item in value]
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _form(value)
    return type(value).__name__


def _form(tensor: Any) -> str:
    form = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
    if type(tensor).__name__ != "Tensor":  # an array in a tensor's place is no tensor
        form = f"{type(tensor).__name__} {form}"
    storage = str(getattr(tensor, "layout", "torch.strided"))
    if storage != "torch.strided":
        form += f" {storage.removeprefix('torch.')}"
    return f"{form} without values" if getattr(tensor, "is_meta", False) else form


def text_difference(saved: Any, found: str) -> str | None:
    """Where what two `layout_text` describe first differs, and how; None where it does not."""
    if saved == found:
        return None
    try:
        layout = json.loads(saved)
    except (TypeError, ValueError, RecursionError):
        return "the layout of the inner state is unreadable"
    return difference(layout, json.loads(found), "the inner state") or "the inner state differs"


def difference(saved: Any, found: Any, where: str) -> str | None:
    """Where two layouts first differ, and how; None where they do not."""
    if type(saved) is not type(found) or isinstance(saved, str):
        same = type(saved) is type(found) and saved == found
        return None if same else f"{where} is {_brief(found)} and {_brief(saved)} was saved"
    if isinstance(saved, list):
        if len(saved) != len(found):
            return f"{where} has {len(found)} entries and {len(saved)} were saved"
        pairs = [(f"{where}[{i}]", a, b) for i, (a, b) in enumerate(zip(saved, found, strict=True))]
    else:
        if set(saved) != set(found):
            return f"{where} has the keys {sorted(found)} and {sorted(saved)} were saved"
        pairs = [(f"{where}[{key}]", saved[key], found[key]) for key in saved]
    return next(filter(None, (difference(a, b, name) for name, a, b in pairs)), None)


def group_difference(ours: Sequence[Mapping[str, Any]], loaded: Sequence[Any]) -> str | None:
    """Why options of parameter groups that were loaded cannot stand for ``ours``; None if all can.

    They may have more options than ours, as a scheduler adds some, and other values.
    """
    if len(ours) != len(loaded):
        return f"it has {len(loaded)} parameter groups and the optimizer has {len(ours)}"
    for index, (group, other) in enumerate(zip(ours, loaded, strict=True)):
        for name, value in group.items():
            if name not in other:
                return f"parameter group {index} has no {name!r}, which this optimizer needs"
            if name != "params" and not _can_stand_for(value, other[name]):
                return f"{name!r} of parameter group {index} is {other[name]!r}, not like {value!r}"
    return None


def _can_stand_for(ours: Any, loaded: Any) -> bool:
    if ours is None:  # not set
        return True
    if isinstance(ours, bool):
        return loaded is None or isinstance(loaded, bool)
    if isinstance(ours, list | tuple):
        return (
            isinstance(loaded, list | tuple)
            and len(ours) == len(loaded)
            and all(map(_can_stand_for, ours, loaded))
        )
    if _is_number(ours):
        return _is_number(loaded) and (_is_finite(loaded) or not _is_finite(ours))
    return isinstance(loaded, type(ours))


def _is_number(value: Any) -> bool:
    """A Python number, or a tensor of one element: either can be a learning rate."""
    if hasattr(value, "shape"):
        return bool(math.prod(value.shape) == 1)
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_finite(number: Any) -> bool:
    try:
        return math.isfinite(float(number))
    except OverflowError:  # an int beyond all floats
        return False


def _brief(layout: Any) -> str:
    return layout if isinstance(layout, str) else f"a {type(layout).__name__}"
