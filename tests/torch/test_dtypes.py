"""Every floating-point dtype, memory layout and shape; half precision keeps a float32 anchor."""

import pytest
import torch
from models import Linear, same, step_with, train, weights
from ranks import by_rank, equal_on_all_ranks, everyone
from torch import nn

import slowmo_hvd.torch as hvd

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ranks_average_weights_of_any_floating_dtype(dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.zeros(3, 2, dtype=dtype))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), sync_period=1)
    weight.grad = torch.full_like(weight, hvd.rank() + 1.0)
    if dtype.is_complex:
        weight.grad += 2j * (hvd.rank() + 1)
    optimizer.step()
    mean = (1 + hvd.size()) / 2
    assert weight.dtype == dtype
    assert torch.equal(
        weight, torch.full_like(weight, complex(-mean, -2 * mean) if dtype.is_complex else -mean)
    )


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_what_half_precision_cannot_show_adds_up_in_the_anchor(dtype: torch.dtype) -> None:
    """At 1 the step 2⁻¹² is lost to either dtype: the slow momentum still makes it, in time."""
    weight = nn.Parameter(torch.ones(1, dtype=dtype))
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=2.0**-12), sync_period=1, slow_momentum=0.984375
    )
    weight.grad = torch.full_like(weight, 64.0)  # one step of 2⁻⁶, which is seen, then none
    optimizer.step()
    after_one = weight.item()
    for _ in range(40):  # each moves by less than 2⁻⁶, most by less than the dtype's spacing
        step_with(optimizer, 0.0)
    decay = sum(0.984375**k for k in range(41))
    assert after_one == 1 - 2.0**-6
    assert weight.item() == pytest.approx(1 - 2.0**-6 * decay, abs=2.0**-9)


@pytest.mark.ranks(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_slow_state_is_in_float32_at_least(dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.zeros(2, dtype=dtype))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), slow_momentum=0.5)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    slow = optimizer.state_dict()["slowmo"]
    assert [tensor.dtype for tensor in slow["anchor"].values()] == [expected]
    assert [tensor.dtype for tensor in slow["momentum"].values()] == [expected]


@pytest.mark.ranks(1, 2)
def test_one_model_may_mix_dtypes_and_groups() -> None:
    half, single, double = Linear(torch.bfloat16), Linear(), Linear(torch.float64)
    model = nn.ModuleList([half, single, double])
    inner = torch.optim.SGD(
        [
            {"params": [half.first, single.first, double.first], "lr": 0.1},
            {"params": [double.second, half.second, single.second], "lr": 0.2},
        ],
        momentum=0.9,
    )
    optimizer = hvd.DistributedOptimizer(inner, sync_period=2, buffers="average")
    history = [weights(model)]
    for step in range(4):
        for part in (half, single, double):
            train(part, torch.optim.SGD(part.parameters(), lr=0.0), [step])
        optimizer.step()
        history.append(weights(model))
    first, *others = everyone(history)
    for step in range(5):
        assert all(same(first[step], other[step]) == (step % 2 == 0) for other in others)
    assert [param.dtype for param in half.parameters()] == [torch.bfloat16] * 2
    assert [param.dtype for param in double.parameters()] == [torch.float64] * 2


@pytest.mark.ranks(1, 2)
def test_groups_of_mixed_dtypes_each_keep_their_own_gamma() -> None:
    params = [
        nn.Parameter(torch.zeros(1, dtype=dtype))
        for dtype in (torch.float32, torch.float64, torch.float64, torch.float32)
    ]
    inner = torch.optim.SGD([{"params": params[:2], "lr": 1.0}, {"params": params[2:], "lr": 0.5}])
    optimizer = hvd.DistributedOptimizer(inner, sync_period=1, slow_momentum=0.5)
    step_with(optimizer, 1.0, 2.0, 4.0, 8.0)
    step_with(optimizer, 0.0, 0.0, 0.0, 0.0)
    assert [param.item() for param in params] == [-1.5, -3, -3, -6]


@pytest.mark.ranks(1, 2)
def test_channels_last_and_other_strides_stay() -> None:
    layer = nn.Conv2d(3, 4, kernel_size=2).to(memory_format=torch.channels_last)
    nn.init.constant_(layer.weight, 0.25)
    turned = nn.Parameter(torch.arange(6.0).view(2, 3).t())
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([layer.weight, turned], lr=1.0), sync_period=1, slow_momentum=0
    )
    before = weights([layer.weight, turned])
    gradients = [torch.randn_like(param) for param in before]
    layer.weight.grad, turned.grad = (gradient.clone() for gradient in gradients)
    optimizer.step()
    for index, param in enumerate((layer.weight, turned)):
        mean = torch.stack([theirs[index] for theirs in everyone(gradients)]).mean(dim=0)
        torch.testing.assert_close(param.detach(), before[index] - mean)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert turned.stride() == (1, 3)


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("strategy", ["reset", "maintain", "average"])
def test_scalars_and_empty_tensors_are_parameters_too(strategy: str) -> None:
    scalar, empty = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.zeros(0, 4))
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([empty, scalar], lr=1.0, momentum=0.5),
        sync_period=1,
        slow_momentum=0,
        buffers=strategy,
    )
    step_with(optimizer, 1.0, by_rank(1.0, 3.0))
    assert scalar.item() == (2 if hvd.size() == 1 else 1)
    assert scalar.shape == ()
    assert empty.shape == (0, 4)
    assert equal_on_all_ranks([scalar, empty])


@pytest.mark.ranks(1, 2)
def test_a_model_of_empty_tensors_only_trains() -> None:
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([nn.Parameter(torch.zeros(0))], lr=1.0), sync_period=1
    )
    step_with(optimizer, 1.0)
    assert optimizer.sync_stats.syncs == 1
