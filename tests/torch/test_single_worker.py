"""One worker: Lookahead with slow momentum, with no horovodrun and nothing on the wire."""

import sys
from pathlib import Path

import pytest
import torch
from launch import horovodrun, run
from models import number, step_with

import slowmo_hvd.torch as hvd

SCRIPT = """
import torch
import slowmo_hvd.torch as hvd

weight = torch.nn.Parameter(torch.zeros(1))
try:
    hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0))
except ValueError as error:
    print("too early:", error)

hvd.init()
optimizer = hvd.DistributedOptimizer(
    torch.optim.SGD([weight], lr=1.0), sync_period=2, slow_momentum=0.5
)
for _ in range(4):
    weight.grad = torch.ones(1)
    optimizer.step()
hvd.broadcast_optimizer_state(optimizer, root_rank=0)
optimizer.flush()
print(f"rank {hvd.rank()} of {hvd.size()} is at {weight.item()}")
print(f"{optimizer.sync_stats.syncs} syncs sent {optimizer.sync_stats.bytes} bytes")
"""


@pytest.mark.parametrize("launcher", ["python", "horovodrun"])
def test_a_script_runs_alone(launcher: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    if launcher == "python":
        done = run([sys.executable, str(script)])
    else:
        done = horovodrun(1, str(script))
    assert done.returncode == 0, done.stdout
    assert "too early: Horovod has not been initialised; call hvd.init() first" in done.stdout
    assert "rank 0 of 1 is at -5.0" in done.stdout  # -2; then -2 - (0.5·2 + 2)
    assert "2 syncs sent 0 bytes" in done.stdout


@pytest.mark.ranks(1)
def test_lookahead_interpolates_between_the_slow_and_the_fast_weights() -> None:
    """optax's example: 3 → 2 → 1 → back to the middle."""
    weight = number(3.0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=1.0), sync_period=2, slow_lr=0.5, slow_momentum=0
    )
    path = []
    for _ in range(4):
        step_with(optimizer, 1.0)
        path.append(weight.item())
    assert path == [2, 2, 1, 1]
