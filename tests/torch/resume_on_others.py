"""Save on some ranks, or load on rank 0 alone, broadcast to all the ranks there are, and go on."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from models import number, step_with

import slowmo_hvd.torch as hvd

ORDERS = ("broadcast, wrap", "wrap, broadcast")


def wrapped(weight: torch.nn.Parameter) -> hvd.DistributedOptimizer:
    return hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=1.0), sync_period=2, slow_momentum=0.5
    )


def save(path: Path) -> None:
    """A whole window from x = 2, with gradients that differ on the ranks and average to 1/2."""
    weight = number(2.0)
    optimizer = wrapped(weight)
    for _ in range(2):
        step_with(optimizer, float(hvd.rank()))
    if hvd.rank() == 0:
        torch.save({"x": weight.data, "optimizer": optimizer.state_dict()}, path)


def resume(path: Path, order: str) -> dict[str, Any]:
    weight = number(7.0 + hvd.rank())
    saved = torch.load(path, weights_only=True) if hvd.rank() == 0 else None
    if saved is not None:
        weight.data.copy_(saved["x"])
    if order == "broadcast, wrap":
        hvd.broadcast_parameters([("x", weight)], root_rank=0)
    optimizer = wrapped(weight)
    if saved is not None:
        optimizer.load_state_dict(saved["optimizer"])
    if order == "wrap, broadcast":
        hvd.broadcast_parameters([("x", weight)], root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    slow = optimizer.state_dict()["slowmo"]
    loaded = [weight.item(), slow["anchor"][0].item(), slow["momentum"][0].item()]
    for _ in range(2):
        step_with(optimizer, 0.0)
    return {"loaded": loaded, "in the end": weight.item()}


def main(command: str, folder: str) -> None:
    hvd.init()
    path = Path(folder) / "checkpoint.pt"
    if command == "save":
        save(path)
    else:
        report = json.dumps([resume(path, order) for order in ORDERS])
        (Path(folder) / f"{hvd.size()}.{hvd.rank()}").write_text(report)


if __name__ == "__main__":
    main(*sys.argv[1:])
