"""Virtual workers end where real ones under horovodrun do, with every method of the experiments."""

import pytest
import torch
from small_task import Small

import slowmo_hvd.torch as hvd
from experiments.real_workers import compare
from experiments.settings import Setting
from experiments.virtual_workers import VirtualWorkers
from slowmo_hvd.core.config import SlowMoConfig

CASES = [
    ("averaging", 0.0, "maintain"),
    ("slowmo", 0.0, "reset"),
    ("slowmo", 0.5, "reset"),
    ("slowmo", 0.5, "maintain"),
    ("slowmo", 0.5, "average"),
    ("post-local", 0.0, "reset"),
    ("diloco", 0.9, "reset"),
    ("qsr", 0.0, "reset"),
]


@pytest.mark.ranks(2, 4)
@pytest.mark.parametrize("inner", ["SGD", "AdamW"])
@pytest.mark.parametrize(("method", "slow_momentum", "buffers"), CASES)
def test_end_where_real_ones_do(
    method: str, slow_momentum: float, buffers: str, inner: str
) -> None:
    setting = Setting("small", method, hvd.size(), 4, slow_momentum, buffers)
    # 25 steps: an epoch and more, and an end inside a window.
    apart = compare(Small(inner), setting, lr=0.05, steps=25, dtype=torch.float64)

    assert max(apart.values()) < 1e-12, apart


@pytest.mark.ranks(2)
def test_end_where_real_ones_do_while_the_slow_momentum_rises() -> None:
    setting = Setting("small", "slowmo", hvd.size(), 4, 0.5, "maintain", momentum_warmup=3)
    apart = compare(Small("AdamW"), setting, lr=0.05, steps=25, dtype=torch.float64)

    assert max(apart.values()) < 1e-12, apart


def test_bmuf_is_slowmo_whose_gamma_is_one() -> None:
    task = Small("SGD")
    ends = []
    for scaled, lr in ((True, 1.0), (False, 1.0), (False, 0.5)):
        torch.manual_seed(0)
        config = SlowMoConfig(sync_period=2, slow_momentum=0.5)
        workers = VirtualWorkers(task.model(), 2, task.loss, task.inner, config, scaled=scaled)
        for rate in (lr, lr, lr / 10, lr / 10):
            workers.step(task.examples(torch.arange(8).view(2, 4)), rate)
        ends.append(workers.mean().state_dict()["0.weight"])
    # With γ = 1 in the first window both hold the same u, of which the second, with γ = 0.1, takes
    # a tenth as much where u is divided by γ.
    assert not torch.allclose(ends[0], ends[1])
    assert not torch.allclose(ends[1], ends[2])


def test_refuse_what_they_do_not_simulate() -> None:
    task = Small("SGD")
    for more in ({"overlap_steps": 1}, {"fragments": 2}):
        with pytest.raises(ValueError, match="neither overlap_steps nor fragments"):
            VirtualWorkers(task.model(), 2, task.loss, task.inner, SlowMoConfig(**more))
