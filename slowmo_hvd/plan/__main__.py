"""``horovodrun -np 4 python -m slowmo_hvd.plan --parameters 25.6M --step-seconds 0.25``."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slowmo_hvd.plan.arguments import parse
from slowmo_hvd.plan.cost import Training, Wire
from slowmo_hvd.plan.measure import measure
from slowmo_hvd.plan.plot import draw
from slowmo_hvd.plan.report import advice, as_json, rows, table


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what each way to train costs. The exit status."""
    parsed = parse(arguments)
    training = Training(parsed.parameters, parsed.step_seconds, parsed.spread)
    wire: Any = parsed.simulate
    if wire is None:
        wire = parsed.records.wire if parsed.records else _measured(parsed.parameters, parsed.ranks)
    if wire is None:
        return 0  # not the rank that prints
    if isinstance(wire, str):
        print(wire, file=sys.stderr)
        return 2
    return _report(training, wire, parsed)


def _measured(parameters: int, ranks: Sequence[int] | None) -> Any:
    """What was measured, on rank 0; None on the others; what is missing, if something is."""
    try:
        import horovod.torch as hvd
        import torch
    except ImportError as error:
        return f"measuring needs torch and Horovod ({error}); or give --simulate"
    # "dynamic": a process set is added later, once it is known how many workers there are. With a
    # shutdown and a second init instead, a rank may meet the addresses that others had before.
    hvd.init(process_sets="dynamic" if ranks else None)
    if hvd.size() == 1:
        return (
            "there is one worker and nothing to send: run it under horovodrun on the workers that "
            "are to train, or give --simulate workers=32 rate=10gbit latency=50us"
        )
    strange = [rank for rank in ranks or () if rank >= hvd.size()]
    if strange:
        return f"--ranks: there is no rank {strange[0]}, there are {hvd.size()}"
    among = _process_set(hvd, ranks)
    if not among.included():
        hvd.barrier()  # a rank that ends ends Horovod on all
        return None
    first = among.rank() == 0

    def tell(line: str) -> None:
        if first:
            print(line, file=sys.stderr, flush=True)

    found = measure(hvd, torch, parameters, tell, among)
    hvd.barrier()
    return found if first else None


def _process_set(hvd: Any, ranks: Sequence[int] | None) -> Any:
    """Horovod's for these ranks. A collective over all."""
    if ranks is None or len(ranks) == hvd.size():
        return hvd.global_process_set
    return hvd.add_process_set(ranks)


def _report(training: Training, wire: Wire, parsed: Any) -> int:
    made = rows(parsed.periods, training, wire)
    advised = advice(training, wire, parsed.overhead)
    print(
        f"{wire.workers} workers, {training.parameters / 1e6:g}M parameters, "
        f"{training.step:g} s a local step\n"
    )
    print(table(made))
    print("\n" + "\n".join(advised))
    if parsed.json:
        Path(parsed.json).write_text(json.dumps(as_json(training, wire, made, advised), indent=1))
    if parsed.plot:
        try:
            draw(made, parsed.plot)
        except ImportError:
            print("--plot needs matplotlib: pip install matplotlib", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
