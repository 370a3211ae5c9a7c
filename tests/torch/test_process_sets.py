"""Process sets: the ranks of a set train together, and all others stay out of it."""

from pathlib import Path

from launch import horovodrun

SCRIPT = """
import copy

import torch
import slowmo_hvd.torch as hvd

hvd.init()
pairs = [hvd.add_process_set([0, 1]), hvd.add_process_set([2, 3])]
mine = pairs[hvd.rank() // 2]

weight = torch.nn.Parameter(torch.zeros(1))
optimizer = hvd.DistributedOptimizer(
    torch.optim.SGD([weight], lr=1.0, momentum=0.5),
    process_set=mine,
    sync_period=2,
    slow_momentum=0,
    buffers="average",
)
for _ in range(2):
    weight.grad = torch.full((1,), float(hvd.rank()))
    optimizer.step()
assert optimizer.sync_stats.last.workers == 2
print(f"rank {hvd.rank()} in its pair: {weight.item()}")

# A copy of a pair's optimizer trains in the same pair.
weight_copy, copied = copy.deepcopy((weight, optimizer))
for _ in range(2):
    weight_copy.grad = torch.full((1,), float(hvd.rank()))
    copied.step()
print(f"rank {hvd.rank()} with a copy: {copied.sync_stats.last.workers} workers")

# A checkpoint that a pair's second rank alone has loaded.
if hvd.rank() % 2:
    optimizer.param_groups[0]["lr"] = 0.5
hvd.broadcast_optimizer_state(optimizer, root_rank=mine.ranks[1])
print(f"rank {hvd.rank()} has lr {optimizer.param_groups[0]['lr']}")

# On ranks outside its process set the optimizer is the inner one.
local = torch.nn.Parameter(torch.zeros(1))
partial = hvd.DistributedOptimizer(
    torch.optim.SGD([local], lr=1.0), process_set=pairs[0], sync_period=1, slow_momentum=0
)
local.grad = torch.full((1,), float(hvd.rank()))
partial.step()
partial.flush()
hvd.broadcast_optimizer_state(partial, root_rank=0)
print(f"rank {hvd.rank()} with pair 0: {local.item()} after {partial.sync_stats.syncs} syncs")

# Ranks of one set that do not agree stop without the others.
other = hvd.DistributedOptimizer(
    torch.optim.SGD([local], lr=1.0),
    process_set=mine,
    sync_period=3 if hvd.rank() == 3 else 2,
)
try:
    other.step()
    print(f"rank {hvd.rank()} agrees")
except ValueError as error:
    print(f"rank {hvd.rank()} stops: {error}")
hvd.barrier()  # the first to end ends Horovod for all
"""


def test_two_pairs_of_ranks_train_two_models(tmp_path: Path) -> None:
    script = tmp_path / "pairs.py"
    script.write_text(SCRIPT)
    dynamic = {"HOROVOD_DYNAMIC_PROCESS_SETS": "1"}
    done = horovodrun(4, str(script), env=dynamic)
    assert done.returncode == 0, done.stdout
    for line in (
        # Each moves by 1 + 1.5 times its gradient; the pairs' means are 0.5 and 2.5.
        "rank 0 in its pair: -1.25",
        "rank 1 in its pair: -1.25",
        "rank 2 in its pair: -6.25",
        "rank 3 in its pair: -6.25",
        *(f"rank {rank} with a copy: 2 workers" for rank in range(4)),
        *(f"rank {rank} has lr 0.5" for rank in range(4)),
        "rank 0 with pair 0: -0.5 after 1 syncs",
        "rank 1 with pair 0: -0.5 after 1 syncs",
        "rank 2 with pair 0: -2.0 after 0 syncs",
        "rank 3 with pair 0: -3.0 after 0 syncs",
        "rank 0 agrees",
        "rank 1 agrees",
        "rank 2 stops: the ranks differ in sync_period: 2 on rank 2, 3 on rank 3",
        "rank 3 stops: the ranks differ in sync_period: 2 on rank 2, 3 on rank 3",
    ):
        assert line in done.stdout
