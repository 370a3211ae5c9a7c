"""The parameter groups are the inner optimizer's own, whoever changes or replaces them."""

import copy
import warnings

import pytest
import torch
from models import Linear, number, step_with, train
from ranks import by_rank, equal_on_all_ranks, everyone

import slowmo_hvd.torch as hvd


@pytest.mark.ranks(1)
def test_groups_state_and_defaults_are_the_inner_optimizers_own_also_after_a_load() -> None:
    inner = torch.optim.Adam([number(0.0)], lr=0.1)
    optimizer = hvd.DistributedOptimizer(inner)
    step_with(optimizer, 1.0)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.state is inner.state
    assert optimizer.defaults is inner.defaults


@pytest.mark.ranks(1, 2)
def test_after_a_load_the_schedulers_learning_rate_takes_effect() -> None:
    """torch's PostLocalSGDOptimizer trains at 1.0 here while its scheduler reports 0.5."""
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=1.0), sync_period=1, slow_momentum=0
    )
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    step_with(optimizer, 1.0)
    scheduler.step()
    step_with(optimizer, 1.0)
    assert scheduler.get_last_lr() == [0.5]
    assert weight.item() == -1.5


@pytest.mark.ranks(1, 2)
def test_each_group_has_its_own_gamma() -> None:
    """d̄ is 1 and 0.1, γ is 1 and 0.1, so both momenta are 1, and then 1.5."""
    fast, slow = number(0.0), number(0.0)
    inner = torch.optim.SGD([{"params": [fast], "lr": 1.0}, {"params": [slow], "lr": 0.1}])
    optimizer = hvd.DistributedOptimizer(inner, sync_period=1, slow_momentum=0.5)
    step_with(optimizer, 1.0, 1.0)
    step_with(optimizer, 1.0, 1.0)
    assert optimizer.sync_stats.last is not None
    assert optimizer.sync_stats.last.learning_rates == pytest.approx((1, 0.1))
    assert fast.item() == pytest.approx(-2.5)
    assert slow.item() == pytest.approx(-0.25)


@pytest.mark.ranks(1, 2)
def test_a_group_added_inside_a_window_joins_its_end() -> None:
    """The paper's momentum of the new weight: its displacement over the one step it took."""
    old, new = number(0.0), number(by_rank(5.0, 7.0))
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([old], lr=1.0), sync_period=3, slow_momentum=0.5
    )
    step_with(optimizer, 1.0)
    step_with(optimizer, 1.0)
    optimizer.add_param_group({"params": [new], "lr": 0.5})
    if hvd.rank() == 0:
        step_with(optimizer, 1.0, 2.0)
    else:
        with pytest.warns(UserWarning, match="rank 1 started from other weights than rank 0"):
            step_with(optimizer, 1.0, 2.0)
    assert old.item() == -3  # d̄ = 3, γ = 1
    assert new.item() == 4  # from the root's 5: d̄ = 0.5·2, γ = 0.5
    for _ in range(3):
        step_with(optimizer, 0.0, 0.0)
    assert old.item() == -4.5  # γ β u = 1 · 0.5 · 3
    assert new.item() == 3.5  # γ β u = 0.5 · 0.5 · 2


@pytest.mark.ranks(1, 2)
def test_a_group_added_before_the_first_step_is_as_if_it_had_always_been_there() -> None:
    early, late = Linear(), Linear()
    whole = hvd.DistributedOptimizer(
        torch.optim.SGD([{"params": [early.first]}, {"params": [early.second]}], lr=0.1),
        sync_period=2,
    )
    grown = hvd.DistributedOptimizer(torch.optim.SGD([late.first], lr=0.1), sync_period=2)
    grown.add_param_group({"params": [late.second]})
    train(early, whole, range(4))
    train(late, grown, range(4))
    assert torch.equal(early.first, late.first)
    assert torch.equal(early.second, late.second)


@pytest.mark.ranks(1, 2)
def test_unfreezing_layers_by_new_groups_keeps_the_ranks_together() -> None:
    model = Linear()
    model.first.requires_grad_(False)
    optimizer = hvd.DistributedOptimizer(torch.optim.Adam([model.second], lr=0.1), sync_period=2)
    train(model, optimizer, range(3))
    model.first.requires_grad_(True)
    optimizer.add_param_group({"params": [model.first], "lr": 0.01})
    train(model, optimizer, range(3, 6))
    assert equal_on_all_ranks(model)


@pytest.mark.ranks(1, 2)
def test_a_checkpoint_taken_right_after_a_new_group_loads() -> None:
    old, new = number(0.0), number(0.0)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([old], lr=1.0), sync_period=2)
    step_with(optimizer, 1.0)
    optimizer.add_param_group({"params": [new]})
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    step_with(optimizer, 1.0, by_rank(2.0, 4.0))
    assert old.item() == -2
    assert new.item() == (-2 if hvd.size() == 1 else -3)


@pytest.mark.ranks(2)
def test_a_new_group_on_one_rank_alone_is_an_error_on_all() -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), sync_period=2)
    step_with(optimizer, 1.0)
    # Every rank gets a group, as every rank must, but not the same one.
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1 + hvd.rank()))]})
    with pytest.raises(ValueError, match="the ranks differ in number of elements: 2 on rank 0, 3"):
        step_with(optimizer, 1.0, 1.0)
    assert len(everyone(None)) == 2  # and Horovod still works


@pytest.mark.ranks(1, 2)
def test_a_learning_rate_may_be_a_tensor() -> None:
    weight = number(0.0)
    lr = torch.tensor(1.0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=lr), sync_period=2, slow_momentum=0.5
    )
    step_with(optimizer, 1.0)
    lr.fill_(0.5)  # in place, as torch's schedulers set it
    step_with(optimizer, 1.0)
    assert optimizer.sync_stats.last is not None
    assert optimizer.sync_stats.last.learning_rates == (0.75,)
    assert weight.item() == -1.5
    assert lr.item() == 0.5


@pytest.mark.ranks(1, 2)
def test_a_negative_learning_rate_maximises_with_the_slow_momentum_on() -> None:
    """torch refuses one in its constructors, and takes it in a group."""
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=1.0), sync_period=1, slow_momentum=0.5
    )
    optimizer.param_groups[0]["lr"] = -0.5
    for gradient in (by_rank(1.0, 3.0), 0.0):
        step_with(optimizer, gradient)
    assert weight.item() == (0.75 if hvd.size() == 1 else 1.5)  # u = 1 or 2, then half of it
    assert optimizer.sync_stats.last is not None
    assert optimizer.sync_stats.last.learning_rates == (-0.5,)


@pytest.mark.ranks(2)
def test_saving_right_after_a_new_group_on_one_rank_alone_does_not_disturb_the_start() -> None:
    """The new weight starts from the root's 5 all the same, and moves by 1 on both ranks."""
    old, new = number(0.0), number(by_rank(5.0, 7.0))
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([old], lr=1.0), sync_period=2, slow_momentum=0
    )
    step_with(optimizer, 1.0)
    optimizer.add_param_group({"params": [new]})
    if hvd.rank() == 1:
        optimizer.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step_with(optimizer, 1.0, 1.0)
    assert everyone(new.item()) == [4, 4]
