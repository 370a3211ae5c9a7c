"""What the ranks tell each other now and then: plain numbers, and plain data as JSON; no pickle."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

#: Hands this rank's numbers to the others; returns every rank's by rank, alike on all of them.
Gather: TypeAlias = Callable[[Sequence[float]], Mapping[int, Sequence[float]]]

_PACKED = 6  # bytes that one float64 holds exactly


def gather_json(value: Any, gather: Gather) -> dict[int, Any]:
    """Every rank's ``value`` by rank; a collective wherever ``gather`` is one.

    Written with sums, so that it works after a ``hvd.join()`` too, where an allgather fails.
    """
    text = json.dumps(value).encode()
    longest = max(int(size) for (size,) in gather([len(text)]).values())
    padded = text.ljust(longest + -longest % _PACKED)  # JSON may end in spaces
    rows = gather(
        [
            int.from_bytes(padded[start : start + _PACKED], "big")
            for start in range(0, len(padded), _PACKED)
        ]
    )
    return {
        rank: json.loads(b"".join(int(number).to_bytes(_PACKED, "big") for number in row))
        for rank, row in rows.items()
    }
