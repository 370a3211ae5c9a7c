"""The broadcast of a state: few collectives, any tensor, and no memory where there is some."""

import copy
from collections.abc import Callable
from typing import Any

import horovod.torch
import pytest
import torch
from models import identical, number, step_with
from ranks import by_rank, everyone, same_error_everywhere
from torch import Tensor, nn

import slowmo_hvd.torch as hvd
from slowmo_hvd.torch import broadcasting


class Keeper(torch.optim.Optimizer):
    """An optimizer whose state is whatever it is given, and loaded as it is."""

    def __init__(self, params: Any, state: dict[str, Any]) -> None:
        super().__init__(params, {"lr": 1.0})
        self.state[self.param_groups[0]["params"][0]].update(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Without torch's casts to the parameter's dtype."""
        self.state[self.param_groups[0]["params"][0]] = dict(state_dict["state"][0])

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Nothing."""


def adam(tensors: int, elements: int = 2) -> hvd.DistributedOptimizer:
    params = [nn.Parameter(torch.full((elements,), float(index))) for index in range(tensors)]
    return hvd.DistributedOptimizer(torch.optim.Adam(params, lr=by_rank(0.1, 0.2, 0.3)))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What goes into Horovod's broadcasts from here on."""
    tensors: list[Tensor] = []
    send, send_object = horovod.torch.broadcast_async_, horovod.torch.broadcast_object

    def noting(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        tensors.append(tensor)
        return send(tensor, *args, **kwargs)

    def noting_object(*args: Any, **kwargs: Any) -> Any:
        tensors.append(torch.empty(0))
        return send_object(*args, **kwargs)

    monkeypatch.setattr(horovod.torch, "broadcast_async_", noting)
    monkeypatch.setattr(horovod.torch, "broadcast_", None)
    monkeypatch.setattr(horovod.torch, "broadcast_object", noting_object)
    return tensors


@pytest.mark.ranks(2)
@pytest.mark.parametrize("trained", ["on all ranks", "on the root"])
def test_many_small_tensors_travel_in_one_collective_and_their_description_in_another(
    trained: str, sent: list[Tensor]
) -> None:
    optimizer = adam(200)
    if trained == "on all ranks":
        step_with(optimizer, *[1.0 + hvd.rank()] * 200)
    elif hvd.rank() == 0:
        bare = torch.optim.Adam(optimizer.param_groups[0]["params"])
        step_with(bare, *[1.0] * 200)
        optimizer.load_state_dict(bare.state_dict())
    hvd.broadcast_optimizer_state(optimizer, 0)
    assert len(sent) == 2
    state = optimizer.state_dict()
    assert all(identical(state, theirs) for theirs in everyone(state))


@pytest.mark.ranks(2)
def test_large_tensors_travel_from_and_to_their_own_memory_in_pieces(
    sent: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcasting, "_LARGE", 64)
    monkeypatch.setattr(broadcasting, "_CHUNK", 100)
    optimizer = adam(3, elements=30)  # 120 bytes each: 100 and 20
    step_with(optimizer, *[1.0 + hvd.rank()] * 3)
    sent.clear()
    before = optimizer.state_dict()
    hvd.broadcast_optimizer_state(optimizer, 1)
    state = optimizer.state_dict()
    assert all(identical(state, theirs) for theirs in everyone(state))
    assert [len(tensor) for tensor in sent if len(tensor) > 12] == [100, 20] * 3 * 4
    own = {tensor.data_ptr() for tensor in sent}
    for key in ("anchor", "momentum"):
        for position, tensor in state["slowmo"][key].items():
            assert tensor.data_ptr() == before["slowmo"][key][position].data_ptr()
            assert tensor.data_ptr() in own


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("ranks_have", ["nothing", "the same"])
def test_tensors_of_every_kind_arrive_bit_for_bit(
    small: bool, ranks_have: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not small:
        monkeypatch.setattr(broadcasting, "_LARGE", 4)
        monkeypatch.setattr(broadcasting, "_CHUNK", 12)
    values = torch.arange(-3.0, 3.0)
    state: dict[str, Any] = {
        "bfloat16": values.bfloat16(),
        "half": values.half(),
        "double": values.double() / 3,
        "complex": torch.complex(values, -values),
        "bool": values > 0,
        "bytes": values.to(torch.int8),
        "step": torch.tensor(7.0),
        "count": torch.tensor(2**40),
        "empty": torch.empty(0, 3),
        "transposed": values.view(2, 3).T,
        "nested": [{"deep": values + 1}, (1, None, "text")],
    }
    root = hvd.size() - 1
    given = state if hvd.rank() == root or ranks_have == "the same" else {}
    if hvd.rank() != root:
        given = {key: v * 0 if isinstance(v, Tensor) else v for key, v in given.items()}
    optimizer = hvd.DistributedOptimizer(Keeper([nn.Parameter(torch.zeros(1))], given))
    hvd.broadcast_optimizer_state(optimizer, root)
    assert identical(optimizer.state_dict()["state"][0], state)


@pytest.mark.ranks(2)
def test_a_state_that_is_refused_overwrites_nothing() -> None:
    momentum = by_rank(0.5, 0.25)
    trained = adam(2)
    step_with(trained, 1.0, 2.0)
    saved = copy.deepcopy(trained.state_dict())
    saved["slowmo"]["config"]["slow_momentum"] = momentum
    inner = torch.optim.Adam([nn.Parameter(torch.zeros(2)) for _ in range(2)])
    optimizer = hvd.DistributedOptimizer(inner, slow_momentum=momentum)
    optimizer.load_state_dict(saved)
    before = copy.deepcopy(optimizer.state_dict())
    if hvd.rank() == 0:
        for state in optimizer.state.values():
            state["exp_avg"].add_(1)
        hvd.broadcast_optimizer_state(optimizer, 0)
    else:
        with pytest.raises(ValueError, match=r"saved with slow_momentum=0.5 and this"):
            hvd.broadcast_optimizer_state(optimizer, 0)
        assert identical(optimizer.state_dict(), before)


def torn() -> hvd.DistributedOptimizer:
    """An optimizer of which one sync has failed between two buckets, on this rank."""
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), sync_period=2)
    step_with(optimizer, 1.0)
    optimizer._training.engine._torn = "the sync after step 1 failed"
    return optimizer


@pytest.mark.ranks(2)
def test_what_is_received_mends_a_sync_that_failed_here() -> None:
    optimizer = torn()
    if hvd.rank() == 0:
        optimizer._training.engine.mend()
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    step_with(optimizer, 1.0)
    assert optimizer.sync_stats.syncs == 1


@pytest.mark.ranks(2)
def test_a_root_of_which_a_sync_failed_is_an_error_on_every_rank() -> None:
    optimizer = torn()
    if hvd.rank() == 1:
        optimizer._training.engine.mend()
    text = "rank 0 has no state to broadcast: the sync after step 1 failed"
    same_error_everywhere(
        RuntimeError, text, lambda: hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    )
