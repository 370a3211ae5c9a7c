"""One wild window does not throw the model away where the displacement is clipped, in PyTorch."""

import pytest
import torch
from models import number, step_with
from ranks import by_rank

import slowmo_hvd.torch as hvd

WILD = 12  # the step in which rank 1 has a gradient of 1e6


def furthest(clip: float | None, overlap: int, dtype: torch.dtype) -> tuple[float, list[float]]:
    """How far the anchor of a weight gets from its optimum, 0; and ``clipped`` of each sync."""
    param = number(1.0)
    param.data = param.data.to(dtype)
    inner = torch.optim.SGD([param], lr=0.1)
    settings = {"sync_period": 4, "clip_displacement": clip, "overlap_steps": overlap}
    optimizer = hvd.DistributedOptimizer(inner, slow_momentum=0.5, **settings)
    clipped: list[float] = []
    optimizer.register_sync_hook(lambda record: clipped.append(record.clipped))
    seen = []
    for step in range(40):
        step_with(optimizer, by_rank(0.0, 1e6) if step == WILD else param.item())
        seen.append(abs(optimizer.state_dict()["slowmo"]["anchor"][0].item()))
    return max(seen), clipped


@pytest.mark.ranks(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("overlap", [0, 1])
def test_a_wild_gradient_on_one_rank_is_clipped(overlap: int, dtype: torch.dtype) -> None:
    apart, clipped = furthest(None, overlap, dtype)
    assert apart > 1e4
    assert set(clipped) == {1.0}
    # 8 is four gradients of 2. A clipped window makes u at most 8 larger, which moves the anchor by
    # at most γ 8 / (1 - β) = 1.6 in all. With an overlap the worker takes a step from where the
    # wild one has left it, so that its next windows are wild too, each a tenth as much.
    apart, clipped = furthest(8.0, overlap, dtype)
    assert apart < (6.0 if overlap else 2.0)
    assert min(clipped) < 1e-3
    assert clipped[:3] == [1.0] * 3
    assert clipped[-1] == 1.0
