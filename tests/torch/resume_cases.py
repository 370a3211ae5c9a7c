"""Save or resume every case of the matrix in this process: ``python resume_cases.py save FOLDER``.

A case is an inner optimizer, a strategy for its buffers, a dtype and a pace: some have an average
under way where they are saved. ``save`` trains each without a
break, and writes a checkpoint at every position of a window and what the model is in the end.
``resume`` goes on from every checkpoint, and reports those that do not end there, bit for bit.
"""

import itertools
import json
import sys
from pathlib import Path

import torch
from inner_optimizers import INNER
from models import train, weights

import slowmo_hvd.torch as hvd

STEPS, PERIOD = 7, 3
CASES: list[tuple[str, str, torch.dtype, dict[str, int]]] = [
    (name, strategy, dtype, {})
    for name, inner in INNER.items()
    for strategy, dtype in itertools.product(inner.strategies, inner.dtypes)
]
PACES = [{"overlap_steps": 2}, {"fragments": 2}, {"overlap_steps": 1, "fragments": 2}]
CASES += [
    (name, strategy, dtype, pace)
    for name, strategy, pace in itertools.product(("SGD", "Adam"), ("reset", "maintain"), PACES)
    for dtype in INNER[name].dtypes
]


def wrapped(
    model: torch.nn.Module, name: str, strategy: str, pace: dict[str, int]
) -> hvd.DistributedOptimizer:
    inner = INNER[name].make(model.parameters())
    return hvd.DistributedOptimizer(inner, sync_period=PERIOD, buffers=strategy, **pace)


def save(path: Path, name: str, strategy: str, dtype: torch.dtype, pace: dict[str, int]) -> None:
    inner = INNER[name]
    model = inner.model(dtype)
    optimizer = wrapped(model, name, strategy, pace)
    saved = []
    for step in range(STEPS):
        if 1 <= step <= PERIOD + 1:  # in a window, at its end, and past the reset there
            torch.save((model.state_dict(), optimizer.state_dict()), f"{path}.{step}")
            saved.append(step)
        train(model, optimizer, [step], closure=inner.closure)
    torch.save(weights(model), f"{path}.end")


def resume(
    path: Path, name: str, strategy: str, dtype: torch.dtype, pace: dict[str, int]
) -> list[str]:
    """The steps from which this case does not end as it did without a break."""
    inner = INNER[name]
    end = torch.load(f"{path}.end", weights_only=True)
    parted = []
    for step in range(1, PERIOD + 2):
        model = inner.model(dtype)
        optimizer = wrapped(model, name, strategy, pace)
        model_state, state = torch.load(f"{path}.{step}", weights_only=True)
        model.load_state_dict(model_state)
        optimizer.load_state_dict(state)
        train(model, optimizer, range(step, STEPS), closure=inner.closure)
        if not all(torch.equal(a, b) for a, b in zip(weights(model), end, strict=True)):
            parted.append(f"{name}, {strategy}, {dtype}, {pace}, from step {step}")
    return parted


def main(command: str, folder: str) -> None:
    torch.set_num_threads(1)
    hvd.init()
    parted: list[str] = []
    for index, case in enumerate(CASES):
        path = Path(folder) / f"{index}.{hvd.rank()}"
        if command == "save":
            save(path, *case)
        else:
            parted += resume(path, *case)
    if command == "resume":
        report = {"resumed": len(CASES) * (PERIOD + 1), "parted": parted}
        (Path(folder) / f"report.{hvd.rank()}").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
