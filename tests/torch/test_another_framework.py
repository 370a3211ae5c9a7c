"""Horovod's module for another framework takes the process sets over, and knows no ranks."""

from typing import Any

import horovod.common.process_sets as process_sets
import pytest
import torch
from models import number, step_with

import slowmo_hvd.torch as hvd

WORDS = "another framework was imported after this one's, and has taken over the process sets"


class NotInitialised:
    """As Horovod's handle of a framework whose ``init`` was not called."""

    def rank(self) -> int:
        return -1

    def __getattr__(self, name: str) -> Any:
        return lambda *_: -1


def wrapped() -> hvd.DistributedOptimizer:
    return hvd.DistributedOptimizer(torch.optim.SGD([number(0.0)], lr=0.1), sync_period=2)


@pytest.mark.ranks(1, 2)
def test_one_that_was_imported_before_the_optimizer_is_made_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_sets, "_basics", NotInitialised())
    with pytest.raises(ValueError, match=WORDS):
        wrapped()


@pytest.mark.ranks(1, 2)
def test_one_that_is_imported_later_is_named_in_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    optimizer = wrapped()
    step_with(optimizer, 1.0)
    monkeypatch.setattr(process_sets, "_basics", NotInitialised())
    with pytest.raises(RuntimeError, match=WORDS):
        step_with(optimizer, 1.0)
