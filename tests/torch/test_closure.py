"""step(closure): the closure runs as often as the inner optimizer wants, and counts once."""

import pytest
import torch
from models import Linear, loss_of, number
from ranks import equal_on_all_ranks

import slowmo_hvd.torch as hvd


@pytest.mark.ranks(1, 2)
def test_lbfgs_counts_one_step_however_often_it_calls_its_closure() -> None:
    model = Linear()
    inner = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    optimizer = hvd.DistributedOptimizer(inner, sync_period=2, buffers="reset")
    calls = 0

    def closure() -> float:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss.item()

    syncs = []
    for _ in range(4):
        optimizer.step(closure)
        syncs.append(optimizer.sync_stats.syncs)
    assert syncs == [0, 1, 1, 2]
    assert calls > 8
    assert equal_on_all_ranks(model)


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("keyword", [False, True])
def test_the_loss_comes_back(keyword: bool) -> None:
    weight = number(3.0)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=0.5), sync_period=1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss.item()

    assert (optimizer.step(closure=closure) if keyword else optimizer.step(closure)) == 9
    assert weight.item() == 0
    assert optimizer.step() is None
