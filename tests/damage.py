"""Damaged copies of a state, for the tests that load thousands of them."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

JUNK: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    2,
    3,
    -1,
    -(2**40),
    2**53,
    10**400,
    0.0,
    0.5,
    -1.5,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "junk",
    "0",
    [],
    [0],
    [None, None],
    (),
    {},
    {"x": 1},
    {0: 0},
    b"bytes",
]

#: Ten seeds, each of which says where a state is hit, once or twice, and how.
SEEDS = st.lists(st.integers(0, 2**48), min_size=10, max_size=10, unique=True)


def many(states: int) -> settings:
    """Always the same ``states`` for a test over `SEEDS`, however long one takes."""
    return settings(
        max_examples=states // 10,
        derandomize=True,
        phases=[Phase.generate],  # ten states at once do not shrink to one
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@dataclass
class Count:
    """How the states of a test fared."""

    loaded: int = 0
    refused: int = 0

    def add(self, loaded: bool) -> None:
        if loaded:
            self.loaded += 1
        else:
            self.refused += 1

    @property
    def all(self) -> int:
        return self.loaded + self.refused


Change = Callable[[Any, int], Any]


def damaged(state: Any, seed: int, tensor_changes: list[Change]) -> Any:
    """A deep copy of ``state`` that was hit.

    Args:
        state: nested dicts, lists and tuples with any leaves.
        seed: from `SEEDS`.
        tensor_changes: each takes a tensor and a number, and returns another tensor.
    """
    state = copy.deepcopy(state)
    random = Random(seed)
    for _ in range(random.choice((1, 1, 2))):
        places = list(_places(state))
        if places:
            container, key = random.choice(places)
            _hit(container, key, random.randrange(14), random.randrange(2**10), tensor_changes)
    return state


def refused(load: Callable[[], object]) -> bool:
    """Whether ``load`` raises ValueError, in words that begin as all of ours do."""
    try:
        load()
    except ValueError as error:
        words = str(error)
    else:
        return False
    assert words.startswith("cannot load this SlowMo state: ")
    return True


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every dict or list in a nested value, with every key or index of it."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _hit(container: Any, key: Any, how: int, what: int, tensor_changes: list[Change]) -> None:
    value = container[key]
    if hasattr(value, "shape") and how % 2:
        with contextlib.suppress(Exception):  # not every tensor, nor one hit before, allows it
            container[key] = tensor_changes[what % len(tensor_changes)](value, what)
        return
    others = list(container) if isinstance(container, dict) else list(range(len(container)))
    other = others[what % len(others)]
    kind = how % 7
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[["renamed", 7, str(key), None, True][what % 5]] = container.pop(key)
    elif kind == 2 and isinstance(container, dict):
        container[["added", 99, "0", -1][what % 4]] = copy.deepcopy(value)
    elif kind == 3:
        container[key], container[other] = container[other], container[key]
    elif kind == 4 and isinstance(container, list):
        del container[what % len(container) :]
    elif kind == 5 and type(value) in (int, float) and abs(value) < 1e300:
        container[key] = value + [1, -1, 2**31, -0.5, 1e-9][what % 5]
    else:
        container[key] = copy.deepcopy(JUNK[what % len(JUNK)])
