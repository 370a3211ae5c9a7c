"""The adapter on real ranks against the optimizers that SlowMo reduces to.

The other side is plain torch: each rank trains all workers by itself, with torch's own optimizers
inside and, where the closed form has one, outside.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from problem import SCHEDULES, STEPS, X0, Array, gradient, mean_gradient
from torch import Tensor
from torch_problem import assert_close, groups, parameters, take_step

import slowmo_hvd.torch as hvd

MakeInner = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]

RANKS = pytest.mark.ranks(1, 2, 3, 4)
TOLERANCE = 1e-12
PERIOD = 3


def heavy(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)


def plain(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1, weight_decay=0.01)


def adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, weight_decay=0.1)


def assert_trains_like(
    expected: Iterator[list[Tensor]],
    make_inner: MakeInner,
    schedule: str,
    gradient_of: Callable[[int, int, list[Array]], list[Array]] = gradient,
    **settings: Any,
) -> None:
    """Compare this rank's parameters with the expected ones after every step."""
    params = parameters()
    optimizer = hvd.DistributedOptimizer(make_inner(groups(params)), **settings)
    for step, theirs in zip(range(STEPS), expected, strict=True):
        take_step(
            optimizer,
            SCHEDULES[schedule](step),
            lambda x, step=step: gradient_of(hvd.rank(), step, x),
        )
        assert_close(params, theirs, TOLERANCE)
    assert optimizer.sync_stats.syncs == STEPS // settings["sync_period"] >= 5


def train_apart(
    make_inner: MakeInner,
    schedule: str,
    outer: Callable[[list[Tensor], list[Tensor]], list[Tensor]],
    *,
    workers: int,
    gradient_of: Callable[[int, int, list[Array]], list[Array]] = gradient,
    reset: bool = False,
) -> Iterator[list[Tensor]]:
    """This rank's parameters: PERIOD local steps; ``outer`` takes start and mean to a new start."""
    start = [param.detach() for param in parameters()]
    models = [parameters() for _ in range(workers)]
    inners = [make_inner(groups(params)) for params in models]
    for step in range(STEPS):
        for worker, inner in enumerate(inners):
            take_step(
                inner,
                SCHEDULES[schedule](step),
                lambda x, worker=worker, step=step: gradient_of(worker, step, x),
            )
        if (step + 1) % PERIOD == 0:
            means = [torch.stack(list(of_all)).mean(0) for of_all in zip(*models, strict=True)]
            start = outer(start, [mean.detach() for mean in means])
            for param, value in itertools.chain(*(zip(m, start, strict=True) for m in models)):
                param.data.copy_(value)
            if reset:
                inners = [make_inner(groups(params)) for params in models]
        yield [param.detach() for param in models[hvd.rank()]]


@RANKS
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_with_one_step_and_sgd_inside_it_is_large_batch_heavy_ball(schedule: str) -> None:
    def large_batch() -> Iterator[list[Tensor]]:
        params = parameters()
        sgd = torch.optim.SGD(groups(params), lr=0.1, momentum=0.6, weight_decay=0.01)
        for step in range(STEPS):
            lrs = SCHEDULES[schedule](step)
            # At γ = 0 nothing moves, so the slow momentum cannot see the gradients that torch's
            # sees: before the first step with a learning rate, it has seen none.
            if any(lrs) or schedule == "to zero":
                take_step(sgd, lrs, lambda x, step=step: mean_gradient(hvd.size(), step, x))
            yield [param.detach() for param in params]

    assert_trains_like(large_batch(), plain, schedule, sync_period=1, slow_momentum=0.6)


@RANKS
@pytest.mark.parametrize(
    ("buffers", "schedule"),
    [("reset", "constant"), *(("maintain", schedule) for schedule in SCHEDULES)],
)
def test_without_slow_momentum_it_is_local_sgd(buffers: str, schedule: str) -> None:
    expected = train_apart(
        heavy, schedule, lambda start, mean: mean, workers=hvd.size(), reset=buffers == "reset"
    )
    assert_trains_like(
        expected, heavy, schedule, sync_period=PERIOD, slow_momentum=0.0, buffers=buffers
    )


@RANKS
@pytest.mark.parametrize("schedule", ["decaying in and between windows", "from zero"])
def test_identical_workers_without_slow_momentum_are_one_lookahead(schedule: str) -> None:
    """M. R. Zhang, J. Lucas, G. Hinton, J. Ba, "Lookahead Optimizer: k steps forward, 1 step
    back", NeurIPS 2019, arXiv 1907.08610, Algorithm 1. Every worker sees the same gradients."""

    def same(worker: int, step: int, x: list[Array]) -> list[Array]:
        return gradient(0, step, x)

    def lookahead() -> Iterator[list[Tensor]]:
        fast = parameters()
        slow = [param.detach().clone() for param in fast]
        inner = heavy(groups(fast))
        for step in range(STEPS):
            take_step(inner, SCHEDULES[schedule](step), lambda x, step=step: same(0, step, x))
            if (step + 1) % PERIOD == 0:
                for phi, theta in zip(slow, fast, strict=True):
                    phi += 0.5 * (theta.detach() - phi)
                    theta.data.copy_(phi)
            yield [param.detach() for param in fast]

    assert_trains_like(
        lookahead(),
        heavy,
        schedule,
        same,
        sync_period=PERIOD,
        slow_momentum=0.0,
        slow_lr=0.5,
        buffers="maintain",
    )


def torch_outer(**settings: Any) -> Callable[[list[Tensor], list[Tensor]], list[Tensor]]:
    """torch.optim.SGD on the averaged displacement as on a gradient."""
    params = parameters()
    sgd = torch.optim.SGD(params, **settings)

    def step(start: list[Tensor], mean: list[Tensor]) -> list[Tensor]:
        for param, before, after in zip(params, start, mean, strict=True):
            param.grad = before - after
        sgd.step()
        return [param.detach().clone() for param in params]

    return step


@RANKS
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("make_inner", [heavy, adamw])
def test_at_a_constant_learning_rate_it_is_torchs_sgd_on_displacements(
    make_inner: MakeInner, nesterov: bool
) -> None:
    """With SGD inside and without Nesterov this is BMUF (Chen and Huo, ICASSP 2016)."""
    outer = torch_outer(lr=0.8, momentum=0.6, nesterov=nesterov)
    expected = train_apart(make_inner, "constant", outer, workers=hvd.size())
    assert_trains_like(
        expected,
        make_inner,
        "constant",
        sync_period=PERIOD,
        slow_lr=0.8,
        slow_momentum=0.6,
        nesterov=nesterov,
        buffers="maintain",
    )


@RANKS
def test_with_nesterov_and_adamw_inside_it_is_diloco() -> None:
    """arXiv 2311.08105, Algorithm 1: by default buffers are maintained, as there."""
    outer = torch_outer(lr=0.7, momentum=0.9, nesterov=True)
    expected = train_apart(adamw, "constant", outer, workers=hvd.size())
    assert_trains_like(
        expected,
        adamw,
        "constant",
        sync_period=PERIOD,
        slow_lr=0.7,
        slow_momentum=0.9,
        nesterov=True,
    )


# ---- what others got wrong -----------------------------------------------------------------


@RANKS
def test_no_sync_at_step_0_and_the_first_window_has_exactly_its_steps() -> None:
    params = parameters()
    optimizer = hvd.DistributedOptimizer(plain(groups(params)), sync_period=PERIOD)
    optimizer.flush()
    assert optimizer.sync_stats.syncs == 0
    for step in range(3 * PERIOD):
        take_step(optimizer, (0.1, 0.1), lambda x, step=step: gradient(hvd.rank(), step, x))
        assert optimizer.sync_stats.syncs == (step + 1) // PERIOD


@RANKS
def test_the_anchor_is_taken_before_the_first_step() -> None:
    params = parameters()
    optimizer = hvd.DistributedOptimizer(plain(groups(params)), sync_period=PERIOD)
    for step in range(PERIOD - 1):
        take_step(optimizer, (0.1, 0.1), lambda x, step=step: gradient(hvd.rank(), step, x))
        assert_close(list(optimizer.state_dict()["slowmo"]["anchor"].values()), X0, 0)
    with pytest.raises(AssertionError):
        assert_close(params, X0, 1e-3)


@RANKS
@pytest.mark.parametrize(
    ("dtype", "nesterov"),
    [(torch.float64, False), (torch.float32, True), (torch.bfloat16, False)],
)
def test_a_learning_rate_of_zero_divides_nothing(dtype: torch.dtype, nesterov: bool) -> None:
    params = parameters(dtype)
    optimizer = hvd.DistributedOptimizer(heavy(groups(params)), sync_period=2, nesterov=nesterov)
    for step in range(4):
        take_step(optimizer, (0.0, 0.0), lambda x, step=step: gradient(hvd.rank(), step, x))
    slow = optimizer.state_dict()["slowmo"]
    assert_close(params, X0, 0)
    assert_close(list(slow["anchor"].values()), X0, 0)
    assert not any(momentum.any() for momentum in slow["momentum"].values())


@RANKS
def test_a_learning_rate_of_zero_keeps_the_slow_momentum_for_later() -> None:
    params = parameters()
    inner = torch.optim.SGD(groups(params), lr=0.5)
    optimizer = hvd.DistributedOptimizer(inner, sync_period=1, slow_momentum=0.5)
    # With gradients of 1, u = 1, 1.5, then, past the zeros, 1.75; x falls by γu.
    for lr, u, fallen in [
        (0.5, 1.0, 0.5),
        (0.5, 1.5, 1.25),
        (0.0, 1.5, 1.25),
        (0.0, 1.5, 1.25),
        (0.5, 1.75, 2.125),
    ]:
        take_step(optimizer, (lr, lr), lambda x: [np.ones_like(value) for value in x])
        momentum = list(optimizer.state_dict()["slowmo"]["momentum"].values())
        assert_close(momentum, [np.full_like(value, u) for value in X0], 1e-15)
        assert_close(params, [value - fallen for value in X0], 1e-15)


ULP = 2.0**-7  # of bfloat16 between 1 and 2


@pytest.mark.ranks(3)
def test_the_slow_state_keeps_what_is_too_small_for_bfloat16_to_show() -> None:
    # In each window one rank of three steps up by one ulp, so the mean moves by a third. The
    # float32 anchor is 1/3, 2/3, 3/3 ... ulp above 1, and the parameter is that, rounded; averaged
    # in bfloat16 it would stay at 1 for ever.
    param = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    inner = torch.optim.SGD([param], lr=ULP)
    optimizer = hvd.DistributedOptimizer(inner, sync_period=1, slow_momentum=0.0)
    seen = []
    for _ in range(8):
        param.grad = torch.full_like(param, -1.0 if hvd.rank() == 1 else 0.0)
        optimizer.step()
        seen.append([(value - 1) / ULP for value in param.tolist()])
        anchor = optimizer.state_dict()["slowmo"]["anchor"][0]
        assert anchor.dtype == torch.float32
        assert anchor.tolist() == pytest.approx([1 + len(seen) / 3 * ULP] * 4, abs=1e-3 * ULP)
    assert seen == [[ulps] * 4 for ulps in (0, 1, 1, 1, 2, 2, 2, 3)]


@pytest.mark.ranks(2, 4)
def test_the_slow_momentum_of_bfloat16_is_float32() -> None:
    # One rank of m moves by an ulp a window: d̄/γ is 1/m, so u = 1/m, 1.5/m and x falls by γu.
    param = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    inner = torch.optim.SGD([param], lr=ULP)
    optimizer = hvd.DistributedOptimizer(inner, sync_period=1, slow_momentum=0.5)
    fallen = 0.0
    for momentum in (1.0, 1.5, 1.75, 1.875):
        param.grad = torch.full_like(param, -1.0 if hvd.rank() == 1 else 0.0)
        optimizer.step()
        fallen += momentum / hvd.size() * ULP
        slow = optimizer.state_dict()["slowmo"]
        assert slow["momentum"][0].dtype == torch.float32
        assert slow["momentum"][0].tolist() == [-momentum / hvd.size()] * 2
        assert slow["anchor"][0].tolist() == [1 + fallen] * 2
