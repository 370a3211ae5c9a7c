"""One line registers a logger, and one rank writes."""

from pathlib import Path

import pytest
import torch
from models import number, step_with
from ranks import everyone
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import slowmo_hvd.torch as hvd


@pytest.mark.ranks(2)
def test_one_rank_writes_a_row_for_each_sync(tmp_path: Path) -> None:
    path = everyone(tmp_path / "syncs.csv")[0]  # one file for all ranks
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([number(0.0)], lr=0.1), sync_period=2)
    handle = hvd.loggers.csv(optimizer, path)
    for _ in range(5):
        step_with(optimizer, 1.0)
    handle.remove()
    optimizer.flush()
    everyone("done")
    assert [line.split(",")[0] for line in path.read_text().splitlines()] == ["step", "2", "4"]


@pytest.mark.ranks(1)
def test_tensorboards_scalars_are_over_the_local_steps(tmp_path: Path) -> None:
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([number(0.0)], lr=0.1), sync_period=2)
    hvd.loggers.tensorboard(optimizer, tmp_path)
    for _ in range(4):
        step_with(optimizer, 1.0)
    events = EventAccumulator(str(tmp_path)).Reload()
    norms = events.Scalars("slowmo/displacement_norm")
    assert [(event.step, event.value) for event in norms] == [
        (2, pytest.approx(0.2)),
        (4, pytest.approx(0.2)),
    ]
