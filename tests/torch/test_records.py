"""sync_stats and sync hooks: what happened, in numbers worked out by hand."""

import pytest
import torch
from models import Linear, number, step_with, train
from ranks import by_rank, everyone
from torch import nn

import slowmo_hvd.torch as hvd


@pytest.mark.ranks(2)
def test_one_sync_of_two_workers_by_hand() -> None:
    """Rank 0 goes to (-3, 0), rank 1 to (0, -4): the mean is 2.5 away, the workers 2.5 from it."""
    weight = nn.Parameter(torch.zeros(2))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=0.5), sync_period=2)
    for _ in range(2):
        weight.grad = torch.tensor(by_rank([3.0, 0.0], [0.0, 4.0]))
        optimizer.step()
    record = optimizer.sync_stats.last
    assert record is not None
    assert record.kind is hvd.Sync.WINDOW
    assert (record.step, record.window, record.workers) == (2, 0, 2)
    assert record.learning_rates == (0.5,)
    assert record.displacement_norm == 2.5
    assert record.drift == pytest.approx(2.5)
    assert record.seconds > 0
    assert 8 <= record.bytes < 100  # two float32 numbers, and a few figures along with them


@pytest.mark.ranks(1, 2, 3)
def test_workers_that_agree_have_not_drifted() -> None:
    weight = nn.Parameter(torch.zeros(1000))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), sync_period=1)
    weight.grad = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    record = optimizer.sync_stats.last
    assert record is not None
    assert record.displacement_norm == pytest.approx(weight.norm().item(), rel=1e-6)
    # From sums of squares in float32, so it can tell a drift from none down to some 1e-4 of it.
    assert record.drift <= 1e-3 * record.displacement_norm


@pytest.mark.ranks(1, 2)
def test_totals_add_up_over_the_syncs() -> None:
    model = Linear()
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), sync_period=2)
    records: list[hvd.SyncRecord] = []
    optimizer.register_sync_hook(records.append)
    train(model, optimizer, range(7))
    stats = optimizer.sync_stats
    assert stats.syncs == len(records) == 3
    assert stats.bytes == sum(record.bytes for record in records)
    assert stats.seconds == pytest.approx(sum(record.seconds for record in records))
    assert stats.last is records[-1]
    assert [record.step for record in records] == [2, 4, 6]
    assert [record.window for record in records] == [0, 1, 2]


def test_before_the_first_sync_there_is_nothing_to_tell() -> None:
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([number(0.0)], lr=1.0))
    assert optimizer.sync_stats == hvd.SyncStats()
    assert optimizer.sync_stats.last is None


@pytest.mark.ranks(2)
def test_traffic_falls_with_the_sync_period() -> None:
    sent = {}
    for sync_period in (1, 4):
        weight = nn.Parameter(torch.zeros(1000))
        optimizer = hvd.DistributedOptimizer(
            torch.optim.SGD([weight], lr=1.0), sync_period=sync_period
        )
        for _ in range(8):
            step_with(optimizer, 1.0)
        sent[sync_period] = optimizer.sync_stats.bytes
    assert sent[1] == 4 * sent[4]


@pytest.mark.ranks(1, 2)
def test_warm_up_flush_and_window_are_told_apart() -> None:
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([number(0.0)], lr=1.0), sync_period=2, warmup_steps=1
    )
    kinds: list[hvd.Sync] = []
    optimizer.register_sync_hook(lambda record: kinds.append(record.kind))
    for _ in range(4):
        step_with(optimizer, 1.0)
    optimizer.flush()
    assert kinds == [hvd.Sync.WARMUP, hvd.Sync.WINDOW, hvd.Sync.FLUSH]


@pytest.mark.ranks(2)
def test_a_hook_sees_the_averaged_model_and_may_communicate_if_all_ranks_have_it() -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), sync_period=1)
    seen: list[list[float]] = []
    optimizer.register_sync_hook(lambda record: seen.append(everyone(weight.item())))
    step_with(optimizer, by_rank(1.0, 3.0))
    assert seen == [[-2, -2]]


@pytest.mark.ranks(2)
def test_a_hook_on_one_rank_alone_is_enough_for_a_logger() -> None:
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([number(0.0)], lr=1.0), sync_period=1)
    drifts: list[float] = []
    if hvd.rank() == 0:
        optimizer.register_sync_hook(lambda record: drifts.append(record.drift))
    step_with(optimizer, by_rank(1.0, 3.0))
    assert drifts == pytest.approx(by_rank([1.0], []))


@pytest.mark.ranks(1, 2)
def test_local_steps_send_nothing() -> None:
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([number(0.0)], lr=1.0), sync_period=5)
    for _ in range(4):
        step_with(optimizer, 1.0)
    assert optimizer.sync_stats.syncs == 0
    assert optimizer.sync_stats.bytes == 0
