"""One small interface to a worker of either framework, for what must be alike in both.

A worker is one weight vector in a ``DistributedOptimizer``; its gradients are given, not computed.
"""

import importlib
import re
from collections.abc import Callable
from typing import Any, Protocol

import framework
import pytest
from ranks import everyone


class Worker(Protocol):
    """What the tests ask of a worker."""

    optimizer: Any

    def step(self, gradient: float) -> None:
        """One step with this number as the gradient of every weight."""

    def weights(self) -> list[float]:
        """The weights."""

    def take_all_from(self, root: int) -> None:
        """What a script does for all ranks to go on from one rank's model. A collective."""

    def steps_taken(self) -> int:
        """The optimizer's count of steps."""

    def momentum(self) -> list[float]:
        """The momentum that the inner SGD has, without its sign and its learning rate."""

    def set_momentum(self, value: float) -> None:
        """Put the inner SGD's momentum to this number."""

    def slow_momentum(self) -> list[float]:
        """u."""


def worker(
    size: int = 1,
    *,
    lr: float = 1.0,
    momentum: float = 0.0,
    loss_scaled: bool = False,
    **slowmo: Any,
) -> Worker:
    """A worker with ``size`` weights at 0 and SGD inside, in the session's framework.

    With ``loss_scaled``, gradients are scaled, and a step that overflows is left out.
    """
    made: Worker = _module().SGDWorker(
        size, lr=lr, momentum=momentum, loss_scaled=loss_scaled, **slowmo
    )
    return made


def hvd() -> Any:
    """The adapter of the session's framework, as a user imports it."""
    return importlib.import_module(f"slowmo_hvd.{framework.current()}")


def same_error_in_a_step(error: type[Exception], match: str, action: Callable[[], object]) -> None:
    """Require that ``action`` fails on every rank, with one sentence of ours. A collective.

    Out of a graph of TensorFlow's it is of another kind, and has a long text.
    """
    with pytest.raises(_module().error_out_of(error)) as raised:
        action()
    lines = [line for line in str(raised.value).splitlines() if re.search(match, line)]
    said = {line.partition(f"{error.__name__}: ")[2] or line for line in lines}
    assert len(said) == 1, str(raised.value)
    sentences = everyone(said)
    assert all(sentence == sentences[0] for sentence in sentences), sentences


def _module() -> Any:
    return importlib.import_module(f"workers_{framework.current()}")
