"""Before the first step the ranks compare notes: one error on all of them, or one start."""

import warnings
from typing import Any

import pytest
import torch
from models import Linear, number, step_with
from ranks import by_rank, equal_on_all_ranks, everyone, same_error_everywhere
from torch import nn

import slowmo_hvd.torch as hvd


def wrapped(*shapes: tuple[int, ...], **options: Any) -> hvd.DistributedOptimizer:
    params = [nn.Parameter(torch.zeros(shape)) for shape in shapes or [(1,)]]
    for param in params:
        param.grad = torch.ones_like(param)
    return hvd.DistributedOptimizer(torch.optim.SGD(params, lr=1.0), **options)


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize(
    ("argument", "values", "text"),
    [
        ("sync_period", (2, 3, 2), "sync_period: 2 on rank 0, 3 on rank 1"),
        ("slow_lr", (1.0, 0.5, 1.0), "slow_lr: 1.0 on rank 0, 0.5 on rank 1"),
        ("slow_momentum", (0.5, 0.25, 0.5), "slow_momentum: 0.5 on rank 0, 0.25 on rank 1"),
        ("nesterov", (False, True, False), "nesterov: 0 on rank 0, 1 on rank 1"),
        ("warmup_steps", (0, 5, 0), "warmup_steps: 0 on rank 0, 5 on rank 1"),
        ("buffers", ("reset", "average", "reset"), "buffers: 'reset' on rank 0, 'average' on"),
    ],
)
def test_a_rank_with_other_arguments_stops_all_with_both_values(
    argument: str, values: tuple[Any, ...], text: str
) -> None:
    optimizer = wrapped(**{argument: by_rank(*values)})
    same_error_everywhere(ValueError, f"the ranks differ in {text}", optimizer.step)


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ([[(2,)], [(2,), (2,)], [(2,)]], "number of parameters: 1 on rank 0, 2 on rank 1"),
        ([[(2,)], [(3,)], [(2,)]], "number of elements: 2 on rank 0, 3 on rank 1"),
        (
            [[(2, 3)], [(3, 2)], [(2, 3)]],
            r"shapes of the parameters: number 0 is \[2, 3\] on rank 0, \[3, 2\] on rank 1;",
        ),
        (
            [[(2,), (3,)], [(3,), (2,)], [(2,), (3,)]],
            r"shapes of the parameters: number 0 is \[2\] on rank 0, \[3\] on rank 1;",
        ),
    ],
)
def test_a_rank_with_another_model_stops_all(
    shapes: list[list[tuple[int, ...]]], text: str
) -> None:
    optimizer = wrapped(*by_rank(*shapes))
    same_error_everywhere(ValueError, f"the ranks differ in .*{text}", optimizer.step)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("sizes", [((3,), (1, 2)), ((1, 2), (2, 1))])
def test_a_rank_with_other_parameter_groups_stops_all(
    sizes: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    """Each group has its own γ, so other groups mean other slow momenta, in silence."""
    params = iter([number(0.0), number(0.0), number(0.0)])
    groups = [
        {"params": [next(params) for _ in range(size)], "lr": 1.0 / (1 + index)}
        for index, size in enumerate(by_rank(*sizes))
    ]
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(groups), sync_period=1)
    same_error_everywhere(
        ValueError, "the ranks differ in .*group", lambda: step_with(optimizer, 1.0, 1.0, 1.0)
    )


@pytest.mark.ranks(2)
def test_a_rank_with_another_dtype_stops_all() -> None:
    weight = number(0.0, by_rank(torch.float32, torch.float64))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), sync_period=1)
    same_error_everywhere(
        ValueError,
        "dtypes .* number 0 is 'torch.float32' on rank 0, 'torch.float64' on rank 1",
        lambda: step_with(optimizer, 1.0),
    )


@pytest.mark.ranks(2)
def test_after_the_error_nothing_has_moved_and_horovod_still_works() -> None:
    optimizer = wrapped(sync_period=2 + hvd.rank())
    same_error_everywhere(ValueError, "sync_period", optimizer.step)
    assert optimizer.param_groups[0]["params"][0].item() == 0
    assert hvd.allreduce(torch.ones(1), op=hvd.Sum, name="still here").item() == 2


@pytest.mark.ranks(2, 3)
def test_unequal_starts_become_the_roots_with_one_warning_that_says_how_far() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 1.0]) + torch.tensor([0.0, 0.5]) * hvd.rank())
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), sync_period=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            step_with(optimizer, 0.0)
    expected = [
        f"rank {hvd.rank()} started from other weights than rank 0 "
        f"(up to {0.5 * hvd.rank():.3g} apart) and takes rank 0's; "
        "broadcast the weights before the first step"
    ]
    assert [str(warning.message) for warning in caught] == (expected if hvd.rank() else [])
    assert weight.tolist() == [1, 1]


@pytest.mark.ranks(2)
def test_the_warning_points_at_the_users_line() -> None:
    weight = number(float(hvd.rank()))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step()
    assert everyone([warning.filename for warning in caught]) == [[], [__file__]]


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("when", ["before wrapping", "after wrapping"])
def test_broadcasting_the_parameters_before_or_after_wrapping_starts_all_alike(when: str) -> None:
    model = Linear(seed=hvd.rank())
    optimizer = None
    if when == "after wrapping":
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=1.0))
    hvd.broadcast_parameters(model.state_dict(), root_rank=hvd.size() - 1)
    if optimizer is None:
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=1.0))
    optimizer.step()  # no gradients, and no warning, which would be an error here
    anchors = list(optimizer.state_dict()["slowmo"]["anchor"].values())
    assert equal_on_all_ranks(anchors)
    assert torch.equal(anchors[0], Linear(seed=hvd.size() - 1).first)


@pytest.mark.ranks(2)
def test_the_ranks_compare_notes_once() -> None:
    """A later change of heart on one rank cannot be seen, but must not hang either."""
    optimizer = wrapped(sync_period=2)
    optimizer.step()
    optimizer.step()
    assert len(set(everyone(optimizer.sync_stats.syncs))) == 1
