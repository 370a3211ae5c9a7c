"""The form of an inner optimizer's state: its values, with their types and shapes.

Frameworks silently load moments of another shape, or no moments, and fail or go wrong in a later
step. So the form is saved beside the slow state, as builtins, and compared before loading.
"""

import json
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

#: Returns the form of a tensor, such as "float32[3, 4]"; None for anything else.
Describe: TypeAlias = Callable[[Any], str | None]


def array_form(value: Any) -> str | None:
    """The form of an object with a shape and a dtype: "ndarray float32[3, 4]"."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} {value.dtype}{list(value.shape)}"
    return None


def form_text(value: Any, describe: Describe) -> str:
    """`form_of`, as JSON.

    A dict would share its keys with the state in a pickle, and one damaged byte would change both
    in the same way. The damage would then not be found.
    """
    return json.dumps(form_of(value, describe))


def form_of(value: Any, describe: Describe) -> Any:
    """The form of a nested state: containers as they are, and each leaf as ``describe`` has it.

    If ``describe`` gives nothing for a leaf, its form is the name of its type.
    """
    if isinstance(value, Mapping):
        return {repr(key): form_of(item, describe) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [form_of(item, describe) for item in value]
    return describe(value) or type(value).__name__


def text_difference(saved: Any, found: str) -> str | None:
    """Where the forms of two `form_text` first differ, and how; None if they are equal."""
    if saved == found:
        return None
    try:
        form = json.loads(saved)
    except (TypeError, ValueError, RecursionError):
        return "the form of the inner state is unreadable"
    return difference(form, json.loads(found), "the inner state") or "the inner state differs"


def difference(saved: Any, found: Any, where: str) -> str | None:
    """Where two forms first differ, and how; None if they are equal."""
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
    """Why loaded options of parameter groups cannot replace ``ours``; None if they can.

    They may have more options than ours, because a scheduler adds some, and other values.
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
    """Whether it is a Python number, or a tensor of one element; either can be a learning rate."""
    if hasattr(value, "shape"):
        return bool(math.prod(value.shape) == 1)
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_finite(number: Any) -> bool:
    try:
        return math.isfinite(float(number))
    except OverflowError:  # an int that is too large for a float
        return False


def _brief(form: Any) -> str:
    return form if isinstance(form, str) else f"a {type(form).__name__}"
