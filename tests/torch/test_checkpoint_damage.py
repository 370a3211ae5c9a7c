"""Thousands of damaged checkpoints: each loads wholly and trains on, or changes nothing.

A moment of a right form but with wrong numbers cannot be told from a right one: it loads.
"""

import copy
import functools
import io
from random import Random
from typing import Any

import pytest
import torch
from damage import SEEDS, Count, damaged, many, refused
from hypothesis import given
from inner_optimizers import INNER
from models import identical, train
from torch import Tensor

import slowmo_hvd.torch as hvd

pytestmark = pytest.mark.ranks(1)

NAMES = ("SGD", "Adam", "Adafactor", "Rprop", "LBFGS", "the user's own")
TENSOR_CHANGES = [
    lambda tensor, _: tensor.t() if tensor.dim() < 3 else tensor,
    lambda tensor, _: tensor.reshape(-1),
    lambda tensor, _: tensor.reshape(1, *tensor.shape),
    lambda tensor, _: tensor.double(),
    lambda tensor, _: tensor.bfloat16(),
    lambda tensor, _: tensor.long(),
    lambda tensor, _: tensor.to_sparse(),
    lambda tensor, _: tensor.to("meta"),
    lambda tensor, _: tensor.numpy(),
    lambda tensor, _: tensor * torch.nan,
    lambda tensor, _: tensor / 0,
    lambda tensor, _: torch.zeros(5),
    lambda tensor, number: tensor + number,
]


class Subject:
    """An optimizer inside its second window, another checkpoint of it, and how it can be reset."""

    def __init__(self, name: str) -> None:
        self.inner = INNER[name]
        self.model = self.inner.model(torch.float32)
        self.optimizer = hvd.DistributedOptimizer(
            self.inner.make(self.model.parameters()), sync_period=3, buffers=self.inner.strategy
        )
        self.train(4)
        self.saved = copy.deepcopy(self.optimizer.state_dict())
        self.train(1)
        self.now = copy.deepcopy(self.optimizer.state_dict())
        self.weights = copy.deepcopy(self.model.state_dict())

    def train(self, steps: int) -> None:
        train(self.model, self.optimizer, range(steps), closure=self.inner.closure)

    def again(self) -> None:
        """Go back to where the damaged state was loaded."""
        self.model.load_state_dict(self.weights)
        self.optimizer.load_state_dict(copy.deepcopy(self.now))


subject_for = functools.cache(Subject)
COUNTS = {name: Count() for name in NAMES}
FILES = Count()


def load(name: str, state: Any) -> bool:
    """Load it wholly or not at all; return whether it was loaded."""
    subject = subject_for(name)
    optimizer = subject.optimizer
    kept = copy.deepcopy(state)
    tensors = [value for of in optimizer.state.values() for value in of.values()]
    if refused(lambda: optimizer.load_state_dict(state)):
        assert identical(optimizer.state_dict(), subject.now)
        there = [value for of in optimizer.state.values() for value in of.values()]
        assert all(ours is theirs for ours, theirs in zip(there, tensors, strict=True))
        return False
    try:
        # Without it, as in a bare optimizer's checkpoint, nothing says what form the moments had.
        if "slowmo" in kept:
            assert alike(optimizer.state_dict(), kept)
            # An option of the right type with another value is torch's to judge, in the step.
            if kept["param_groups"] == subject.saved["param_groups"]:
                subject.train(3)  # over a sync
    except (FloatingPointError, OverflowError):
        # Of the sync or of torch's step, as moments that torch itself takes broke the weights, or
        # a step count of -7000 the bias correction.
        assert wild(kept["state"])
    finally:
        subject.again()
    return True


def wild(state: Any) -> bool:
    """Whether some number in it is not finite, or larger than training ever makes it here."""
    if isinstance(state, Tensor):
        return not bool((state.double().abs() < 1e3).all())
    if isinstance(state, dict):
        return any(map(wild, state.values()))
    if isinstance(state, list):
        return any(map(wild, state))
    return isinstance(state, int | float) and not abs(state) < 1e3


def alike(found: Any, kept: Any) -> bool:
    """`identical`, where a NaN is like a NaN and what torch adds or a tuple may differ."""
    if isinstance(found, Tensor):
        return found.dtype == kept.dtype and torch.equal(found.nan_to_num(), kept.nan_to_num())
    if isinstance(found, dict):
        return set(found) >= set(kept) and all(alike(found[key], kept[key]) for key in kept)
    if isinstance(found, list | tuple):
        return len(found) == len(kept) and all(map(alike, found, kept))
    return bool(found == kept)


@many(2400)
@given(SEEDS)
def load_damaged(seeds: list[int]) -> None:
    for seed in seeds:
        name = NAMES[seed % len(NAMES)]
        COUNTS[name].add(load(name, damaged(subject_for(name).saved, seed, TENSOR_CHANGES)))


def test_every_damaged_state_loads_wholly_or_changes_nothing() -> None:
    load_damaged()
    for name, count in COUNTS.items():
        assert count.refused > count.loaded > 0, (name, count)
    assert sum(count.all for count in COUNTS.values()) >= 2400


@many(600)
@given(SEEDS)
def load_damaged_files(seeds: list[int]) -> None:
    file = io.BytesIO()
    torch.save(subject_for("Adam").saved, file)
    for seed in seeds:
        load_damaged_file(bytearray(file.getvalue()), Random(seed))


def load_damaged_file(data: bytearray, random: Random) -> None:
    where = random.randrange(len(data))
    truncated = random.random() < 0.3
    if truncated:
        del data[where:]
    else:
        data[where] ^= 1 << random.randrange(8)
    try:
        state = torch.load(io.BytesIO(bytes(data)), weights_only=True)
    except Exception:  # torch's own, of many kinds: nothing has come near the optimizer
        FILES.add(loaded=False)
        return
    assert not truncated
    FILES.add(load("Adam", state))


def test_a_file_cut_off_or_with_a_bit_flipped_loads_wholly_or_changes_nothing() -> None:
    load_damaged_files()
    assert FILES.all >= 600
    assert FILES.refused > 0, FILES
    assert FILES.loaded > 0, FILES
