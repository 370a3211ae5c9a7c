"""Attributes written to the wrapped optimizer: the inner one's reach it, all others stay."""

from typing import Any

import pytest
import torch
from torch import nn

import slowmo_hvd.torch as hvd

pytestmark = pytest.mark.ranks(2)


class Damped(torch.optim.SGD):
    """SGD with a setting that is no option of its groups, as third-party optimizers have them."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=1.0)
        self.damping = 0.0
        self.found_inf = None  # GradScaler sets one on the optimizer that it steps

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for param in group["params"]:
                param.grad.mul_(1 - self.damping)
        return super().step(closure)


def test_a_setting_of_the_inner_optimizer_is_written_there() -> None:
    weight = nn.Parameter(torch.zeros(1))
    inner = Damped([weight])
    optimizer: Any = hvd.DistributedOptimizer(inner, sync_period=3)
    optimizer.damping = 0.75
    assert inner.damping == optimizer.damping == 0.75
    weight.grad = torch.ones(1)
    optimizer.step()
    assert weight.tolist() == [-0.25]


def test_what_others_note_on_an_optimizer_stays_on_it() -> None:
    inner: Any = Damped([nn.Parameter(torch.zeros(1))])
    optimizer: Any = hvd.DistributedOptimizer(inner)
    torch.optim.lr_scheduler.StepLR(inner, 1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # patches step, and notes that it has
    patched = vars(optimizer)["step"]
    optimizer.step, optimizer._opt_called = patched, True
    optimizer.found_inf, optimizer.seen = torch.ones(1), 3
    assert {"step", "_opt_called", "found_inf", "seen"} <= set(vars(optimizer))
    assert inner.found_inf is None
    assert not hasattr(inner, "seen")


def test_a_setting_that_all_ranks_count_on_cannot_change() -> None:
    optimizer: Any = hvd.DistributedOptimizer(Damped([nn.Parameter(torch.zeros(1))]))
    with pytest.raises(AttributeError, match="slow_momentum cannot change once the optimizer is"):
        optimizer.slow_momentum = 0.7
