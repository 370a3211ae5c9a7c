"""How ranks exchange small data: plain numbers, and plain data as JSON, but no pickle."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

#: Sends this rank's numbers to the others; returns every rank's by rank, equal on all ranks.
Gather: TypeAlias = Callable[[Sequence[float]], Mapping[int, Sequence[float]]]

_PACKED = 6  # bytes that one float64 holds exactly


def gather_json(value: Any, gather: Gather) -> dict[int, Any]:
    """Every rank's ``value`` by rank. A collective if ``gather`` is one.

    It is built from sums, so it also works after a ``hvd.join()``, where an allgather fails.
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
