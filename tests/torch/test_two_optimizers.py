"""Two wrapped optimizers in one process, as a GAN has them, never meet on the wire."""

import pytest
import torch
from models import number, step_with
from ranks import by_rank, equal_on_all_ranks

import slowmo_hvd.torch as hvd


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("order", ["as made", "reversed"])
def test_two_optimizers_of_different_periods_train_their_own_models(order: str) -> None:
    generator, critic = number(0.0), number(0.0)
    slow = hvd.DistributedOptimizer(
        torch.optim.SGD([generator], lr=1.0), sync_period=3, slow_momentum=0
    )
    quick = hvd.DistributedOptimizer(
        torch.optim.SGD([critic], lr=1.0), sync_period=2, slow_momentum=0
    )
    turns = [(slow, 1.0), (quick, 10.0)] if order == "as made" else [(quick, 10.0), (slow, 1.0)]
    for _ in range(6):
        for optimizer, size in turns:
            step_with(optimizer, size * by_rank(1.0, 3.0))
    mean = 1 if hvd.size() == 1 else 2
    assert generator.item() == -6 * mean
    assert critic.item() == -60 * mean
    assert (slow.sync_stats.syncs, quick.sync_stats.syncs) == (2, 3)


@pytest.mark.ranks(1, 2)
def test_the_critic_may_step_more_often_than_the_generator() -> None:
    generator, critic = number(0.0), number(0.0)
    of_generator = hvd.DistributedOptimizer(torch.optim.Adam([generator], lr=0.1), sync_period=2)
    of_critic = hvd.DistributedOptimizer(torch.optim.RMSprop([critic], lr=0.1), sync_period=4)
    for _ in range(4):
        for _ in range(3):
            step_with(of_critic, by_rank(1.0, -3.0))
        step_with(of_generator, by_rank(1.0, -3.0))
    assert (of_generator.sync_stats.syncs, of_critic.sync_stats.syncs) == (2, 3)
    assert equal_on_all_ranks([generator, critic])


@pytest.mark.ranks(2)
def test_an_optimizer_made_on_one_rank_alone_does_not_disturb_the_others() -> None:
    """A rank may keep a copy for itself, to evaluate with, say."""
    weight = number(0.0)
    kept = [
        hvd.DistributedOptimizer(torch.optim.SGD([number(0.0)], lr=1.0)) for _ in range(hvd.rank())
    ]
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), sync_period=1)
    step_with(optimizer, by_rank(1.0, 3.0))
    assert weight.item() == -2
    assert len(kept) == hvd.rank()
