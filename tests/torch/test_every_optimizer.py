"""Any optimizer works inside: each class of torch.optim, a third party's, and the user's own."""

import horovod.torch
import pytest
import torch
from inner_optimizers import ABSTRACT, INNER, Inner, classes_in_torch
from models import same, train, weights
from ranks import everyone

import slowmo_hvd.torch as hvd

CASES = [
    pytest.param(inner, strategy, dtype, id=f"{name}-{strategy}-{str(dtype)[6:]}")
    for name, inner in INNER.items()
    for strategy in inner.strategies
    for dtype in inner.dtypes
]


def test_every_class_that_torch_exports_is_in_the_matrix() -> None:
    assert classes_in_torch() - ABSTRACT <= set(INNER)


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize(("inner", "strategy", "dtype"), CASES)
def test_workers_part_inside_each_window_and_meet_at_its_end(
    inner: Inner, strategy: str, dtype: torch.dtype
) -> None:
    model = inner.model(dtype)
    optimizer = hvd.DistributedOptimizer(
        inner.make(model.parameters()), sync_period=2, buffers=strategy
    )
    history = [weights(model)]
    train(
        model,
        optimizer,
        range(6),
        closure=inner.closure,
        after_step=lambda: history.append(weights(model)),
    )
    first, *others = everyone(history)
    for step, at_first in enumerate(first):
        at_an_end = step % 2 == 0
        assert all(same(at_first, other[step]) == at_an_end for other in others), f"step {step}"
        assert step == 0 or not same(at_first, first[step - 1])
    assert optimizer.sync_stats.syncs == 3
    assert all(weight.dtype == dtype and weight.isfinite().all() for weight in weights(model))


@pytest.mark.ranks(1)
@pytest.mark.parametrize(
    "name", [name for name, inner in INNER.items() if "maintain" in inner.strategies]
)
def test_one_worker_with_no_slow_momentum_trains_as_the_bare_optimizer_does(name: str) -> None:
    inner = INNER[name]
    bare, wrapped = inner.model(torch.float64), inner.model(torch.float64)
    train(bare, inner.make(bare.parameters()), range(6), closure=inner.closure)
    optimizer = hvd.DistributedOptimizer(
        inner.make(wrapped.parameters()), sync_period=2, slow_momentum=0, buffers="maintain"
    )
    train(wrapped, optimizer, range(6), closure=inner.closure)
    for ours, theirs in zip(weights(wrapped), weights(bare), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


def test_the_suite_and_the_package_share_one_horovod() -> None:
    assert hvd.size is horovod.torch.size
