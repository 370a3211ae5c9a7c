"""The planner's command line."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from slowmo_hvd.plan.cost import Ring
from slowmo_hvd.plan.recorded import Recorded, read_records

_COUNTS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}
_RATES = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments; what is wrong with them ends the program with a sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m slowmo_hvd.plan",
        description="What SlowMo costs on this cluster, by sync_period: run it under horovodrun "
        "on the workers that are to train, or with --simulate anywhere.",
    )
    add = parser.add_argument
    add("--parameters", type=_parameters, help="of the model, such as 25.6M or 7B")
    add(
        "--step-seconds",
        type=_positive,
        help="of a local step of one worker: forward, backward and the inner optimizer",
    )
    add(
        "--records",
        metavar="FILE",
        type=_records,
        help="a script's own SyncRecords, a line of json.dumps(record.asdict()) each, in place of "
        "both, and of measuring",
    )
    add("--ranks", type=_ranks, help="measure among these alone, as their process set: 0,1,2,3")
    add("--periods", type=_periods, default="1,4,12,48,120", help="values of sync_period")
    add("--overhead", type=_positive, default=0.05, help="that is acceptable (default: 0.05)")
    add("--spread", type=_fraction, default=0.0, help="standard deviation of a step over its mean")
    add(
        "--simulate",
        nargs="+",
        metavar="NAME=VALUE",
        help="a cluster that is not here: workers=32 rate=10gbit latency=50us",
    )
    add("--json", metavar="FILE", help="write all of it there")
    add("--plot", metavar="FILE", help="draw throughput by sync_period; needs matplotlib")
    parsed = parser.parse_args(arguments)
    if parsed.records:
        parsed.parameters = parsed.parameters or parsed.records.parameters
        parsed.step_seconds = parsed.step_seconds or parsed.records.step
    if not (parsed.parameters and parsed.step_seconds):
        parser.error("give --parameters and --step-seconds, or --records")
    if parsed.simulate:
        try:
            parsed.simulate = _ring(parsed.simulate)
        except ValueError as error:
            parser.error(f"--simulate: {error}")
    return parsed


def _number(text: str, units: dict[str, float] | dict[str, int], example: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)([a-zA-Z]*)", text)
    if not match or match[2] not in units or not float(match[1]):
        raise ValueError(f"{text!r} is not such as {example}")
    return float(match[1]) * units[match[2]]


def _parameters(text: str) -> int:
    try:
        return max(1, round(_number(text, _COUNTS, "25.6M or 7B")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> float:
    try:
        return _number(text, {"": 1}, "0.25")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _fraction(text: str) -> float:
    if text in ("0", "0.0"):
        return 0.0
    return _positive(text)


def _periods(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not such as 4,12,48")
    return sorted({int(part) for part in parts})


def _ranks(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not such as 0,1,2,3")
    return sorted({int(part) for part in parts})


def _records(path: str) -> Recorded:
    try:
        return read_records(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _ring(words: Sequence[str]) -> Ring:
    given = {name: value for name, _, value in (word.partition("=") for word in words)}
    strange = sorted(set(given) - {"workers", "rate", "latency"})
    if strange or not {"workers", "rate"} <= set(given):
        found = f", not {strange[0]}" if strange else ""
        raise ValueError(f"give workers=, rate= and perhaps latency={found}")
    if not given["workers"].isdecimal() or int(given["workers"]) < 2:
        raise ValueError(f"workers={given['workers']} is no whole number above 1")
    return Ring(
        int(given["workers"]),
        _number(given["rate"], _RATES, "10gbit"),
        _number(given["latency"], _TIMES, "50us") if "latency" in given else 0.0,
    )
