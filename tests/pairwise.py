"""Few cases of a large matrix, in which every setting still meets every other.

Most faults need one setting or two together. A case is a value for each factor, such as
``{"optimizer": "Adam", "strategy": "reset", "dtype": "float32"}``.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence


def choose(
    cases: Sequence[Mapping[str, Hashable]], *, elsewhere: Collection[str] = ()
) -> list[int]:
    """The positions of some of the cases, in order, with all their values and pairs of values.

    The same for the same cases. Each pair that occurs in a case occurs in one of those chosen.

    Args:
        cases: all there are, each with the same factors.
        elsewhere: factors whose values meet each other in other tests, and need not do so here.
    """
    brings = [_to_meet(case, elsewhere) for case in cases]
    # Neither is always the smaller.
    return min((_greedily(cases, brings, in_turns) for in_turns in (True, False)), key=len)


def _greedily(
    cases: Sequence[Mapping[str, Hashable]],
    brings: Sequence[set[tuple[tuple[str, Hashable], ...]]],
    in_turns: bool,
) -> list[int]:
    """Take what brings most, and of equals the first, or that whose values were rarest so far."""
    missing = set().union(*brings)
    seen: Counter[tuple[str, Hashable]] = Counter()

    def merit(position: int) -> tuple[int, int]:
        often = sum(seen[value] for value in cases[position].items())
        return len(brings[position] & missing), -often if in_turns else 0

    chosen = []
    while missing:
        best = max(range(len(cases)), key=merit)  # the first of equals
        chosen.append(best)
        missing.difference_update(brings[best])
        seen.update(cases[best].items())
    return sorted(chosen)


def _to_meet(
    case: Mapping[str, Hashable], elsewhere: Collection[str]
) -> set[tuple[tuple[str, Hashable], ...]]:
    """The case's pairs that must be met here, and its values that are in none of these."""
    pairs = {
        pair
        for pair in itertools.combinations(case.items(), 2)
        if not all(factor in elsewhere for factor, _ in pair)
    }
    return pairs | {(value,) for value in case.items()} - {(value,) for value in sum(pairs, ())}
