"""What a training has told of its own syncs, in place of a measurement."""

import itertools
import json
import statistics
from typing import Any, NamedTuple

from slowmo_hvd.plan.cost import Measured

_FLOAT = 4  # bytes
_NEEDED = ("kind", "step", "workers", "bytes", "seconds", "hidden", "since_last", "fragments")


class Recorded(NamedTuple):
    """What follows from a script's records.

    Attributes:
        parameters: of the model.
        step: seconds of a local step of one worker.
        wire: what an average costs: a line through the origin and the size that was sent, of which
            float16 is taken to have half.
    """

    parameters: int
    step: float
    wire: Measured


def read_records(text: str) -> Recorded:
    """Read them: one JSON object in a line each, as ``SyncRecord.asdict`` has it.

    Args:
        text: of one worker's syncs, without a compression, in order. Those that are not at the end
            of a window are left out, and so are fragments.

    Raises:
        ValueError: there are not enough of them, or one is no record.
    """
    records = [_read(line, number) for number, line in enumerate(text.splitlines(), 1)]
    pairs = [
        (before, after)
        for before, after in itertools.pairwise(records)
        if after["kind"] == "window"
        and after["fragments"] == [0]
        and after["step"] > before["step"]
    ]
    if len(pairs) < 2:
        raise ValueError(f"{len(pairs) + 1} records of whole windows are too few: give 3 or more")
    steps = [
        (after["since_last"] - after["seconds"]) / (after["step"] - before["step"])
        for before, after in pairs
    ]
    nbytes = statistics.median(after["bytes"] for _, after in pairs)
    seconds = statistics.median(after["seconds"] + after["hidden"] for _, after in pairs)
    line = [(0.0, 0.0), (nbytes, seconds)]
    wire = Measured(max(after["workers"] for _, after in pairs), {4: line, 2: line})
    return Recorded(round(nbytes / _FLOAT), max(statistics.median(steps), 1e-9), wire)


def _read(line: str, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
        missing = sorted(set(_NEEDED) - set(record))
    except (ValueError, TypeError) as error:
        raise ValueError(f"line {number} is no record: {error}") from None
    if missing:
        raise ValueError(f"line {number} is no record: it has no {missing[0]}")
    return dict(record)
