"""``hvd.elastic.TorchState`` with a SlowMo optimizer: commit, restore and sync lose nothing."""

import pytest
import torch
from horovod.common.elastic import notification_manager
from ranks import everyone

import slowmo_hvd.torch as hvd


def trained(steps: int) -> tuple[torch.nn.Module, hvd.DistributedOptimizer]:
    """A one-weight model after ``steps`` steps of gradient 1, the rank's number added."""
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(model.weight)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5), sync_period=2
    )
    for _ in range(steps):
        model.weight.grad = torch.full_like(model.weight, 1.0 + hvd.rank())
        optimizer.step()
    return model, optimizer


@pytest.mark.ranks(1, 2)
def test_restore_brings_back_what_was_committed() -> None:
    model, optimizer = trained(steps=3)
    state = hvd.elastic.TorchState(model=model, optimizer=optimizer)
    committed = optimizer.state_dict()["slowmo"]["momentum"][0].item()
    for _ in range(2):
        optimizer.step()
    assert optimizer.state_dict()["slowmo"]["momentum"][0].item() != committed
    state.restore()
    slow = optimizer.state_dict()["slowmo"]
    assert slow["momentum"][0].item() == committed
    assert (slow["window"], slow["position"], slow["step"]) == ([1], [1], 3)


@pytest.mark.ranks(2)
def test_sync_gives_a_joining_worker_the_slow_state_of_rank_0() -> None:
    model, optimizer = trained(steps=3)
    before = optimizer.state_dict()["slowmo"]
    fresh = trained(steps=0)  # on both ranks, which name what they wrap by the order of wrapping
    if hvd.rank() == 1:  # a worker that has just joined has seen nothing
        model, optimizer = fresh
    state = hvd.elastic.TorchState(model=model, optimizer=optimizer)
    state.sync()
    slow = optimizer.state_dict()["slowmo"]
    assert (slow["window"], slow["position"], slow["step"]) == ([1], [1], 3)
    assert torch.equal(slow["momentum"][0], before["momentum"][0])
    optimizer.step()  # ends the window, on both ranks
    assert optimizer.sync_stats.last is not None
    assert optimizer.sync_stats.last.workers == 2


@pytest.mark.ranks(2)
def test_before_run_one_step_is_local_and_a_second_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOROVOD_ELASTIC", "1")
    monkeypatch.setattr(notification_manager, "_service", None)
    weight = torch.zeros(1, requires_grad=True)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), sync_period=2)
    weight.grad = torch.tensor([1.0 + 2 * hvd.rank()])
    for turn in range(2):
        if hvd.rank() == turn:
            optimizer.step()
        everyone(None)  # the other rank stands here meanwhile
    optimizer.flush()
    assert weight.tolist() == [-1 - 2 * hvd.rank()]
    with pytest.raises(RuntimeError, match=r"and this is another\. Train inside, and put"):
        optimizer.step()
    monkeypatch.setattr(notification_manager, "_service", "as if run had begun")
    hvd.broadcast_parameters([("weight", weight)], root_rank=0)
    state = hvd.elastic.TorchState(optimizer=optimizer)
    state.sync()
    optimizer.step()
    optimizer.step()
    assert weight.tolist() == [-5]  # d̄ = 4
    assert optimizer.sync_stats.last is not None
    assert optimizer.sync_stats.last.step == 2


@pytest.mark.ranks(1, 2)
def test_a_step_in_a_reset_callback_is_an_error_and_no_hang() -> None:
    """Workers that have just arrived take no part in it: they wait in the state's sync."""
    model, optimizer = trained(steps=1)
    state = hvd.elastic.TorchState(model=model, optimizer=optimizer)
    state.register_reset_callbacks([optimizer.step])
    with pytest.raises(RuntimeError, match="a training step in a reset callback cannot be aver"):
        state.on_reset()
    optimizer.step()  # outside of it
