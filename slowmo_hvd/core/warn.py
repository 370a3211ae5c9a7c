"""Warnings that point at the user's line, and not at one of ours or of a framework."""

import sys
import warnings
from collections.abc import Iterable
from types import FrameType

_NOT_USERS = frozenset({"slowmo_hvd", "torch", "tensorflow", "keras", "contextlib"})


def warn(sentences: Iterable[str]) -> None:
    """Warn of each sentence."""
    for sentence in sentences:
        warnings.warn(sentence, stacklevel=_stack_level_of_user())


def _stack_level_of_user() -> int:
    """The ``stacklevel`` of the user's line, counted from the function that calls this one."""
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] in _NOT_USERS:
        frame, level = frame.f_back, level + 1
    return level
