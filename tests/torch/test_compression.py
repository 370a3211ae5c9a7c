"""Compression.fp16 halves the displacements on the wire and harms nothing else."""

import pytest
import torch
from models import number, step_with
from ranks import by_rank, equal_on_all_ranks
from torch import nn

import slowmo_hvd.torch as hvd


@pytest.mark.ranks(2)
def test_half_the_bytes_and_half_the_precision() -> None:
    moved, sent = {}, {}
    for compression in (hvd.Compression.none, hvd.Compression.fp16):
        weight = nn.Parameter(torch.zeros(10_000))
        optimizer = hvd.DistributedOptimizer(
            torch.optim.SGD([weight], lr=1.0), sync_period=1, compression=compression
        )
        weight.grad = torch.linspace(0.0, 1.0, 10_000) + hvd.rank()
        optimizer.step()
        assert equal_on_all_ranks([weight])
        moved[compression], sent[compression] = weight.detach(), optimizer.sync_stats.bytes
    exact = moved[hvd.Compression.none]
    torch.testing.assert_close(exact, -torch.linspace(0.5, 1.5, 10_000))
    torch.testing.assert_close(moved[hvd.Compression.fp16], exact, rtol=2.0**-9, atol=2.0**-11)
    assert not torch.equal(moved[hvd.Compression.fp16], exact)
    assert 40_000 <= sent[hvd.Compression.none] < 40_100
    assert 20_000 <= sent[hvd.Compression.fp16] < 20_100


@pytest.mark.ranks(2)
def test_gamma_and_the_number_of_workers_travel_exactly() -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=0.1), sync_period=1, compression=hvd.Compression.fp16
    )
    step_with(optimizer, by_rank(1.0, 3.0))
    record = optimizer.sync_stats.last
    assert record is not None
    assert record.workers == 2
    assert record.learning_rates == pytest.approx((0.1,), rel=1e-7)  # float32, and not float16


@pytest.mark.ranks(2)
def test_float64_is_compressed_too() -> None:
    weight = number(0.0, torch.float64)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=1.0), sync_period=1, compression=hvd.Compression.fp16
    )
    step_with(optimizer, by_rank(1.0, 3.0))
    assert weight.item() == -2
    assert weight.dtype == torch.float64


@pytest.mark.ranks(2)
def test_averaged_buffers_are_not_compressed() -> None:
    weight = number(0.0)
    inner = torch.optim.SGD([weight], lr=1.0, momentum=0.5)
    optimizer = hvd.DistributedOptimizer(
        inner, sync_period=1, buffers="average", compression=hvd.Compression.fp16
    )
    step_with(optimizer, by_rank(1.0, 3.0002))
    exact = (torch.tensor(1.0) + torch.tensor(3.0002)) / 2  # which no float16 is
    assert inner.state[weight]["momentum_buffer"].item() == exact.item()


@pytest.mark.ranks(2)
def test_the_start_is_never_compressed() -> None:
    weight = number(by_rank(0.1, 0.1))  # 0.1 is no float16
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=1.0), sync_period=1, compression=hvd.Compression.fp16
    )
    step_with(optimizer, 0.0)
    assert weight.item() == number(0.1).item()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("lr", [1.0, 1e-3, 1e-6, 1e-9, 1e-30])
def test_a_small_learning_rate_does_not_make_the_displacements_vanish(lr: float) -> None:
    """float16 ends at 6e-8, and has fewer digits from 6e-5 on."""
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=lr), sync_period=1, compression=hvd.Compression.fp16
    )
    step_with(optimizer, by_rank(1.0, 3.0))
    assert weight.item() == pytest.approx(-2 * lr, rel=2.0**-10)


@pytest.mark.ranks(2)
def test_a_large_displacement_does_not_overflow() -> None:
    """float16 ends at 65504."""
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=1.0), sync_period=1, compression=hvd.Compression.fp16
    )
    step_with(optimizer, by_rank(50_000.0, 100_000.0))
    assert weight.item() == pytest.approx(-75_000, rel=2.0**-10)


@pytest.mark.ranks(2)
def test_averaging_adams_second_moments_does_not_make_them_vanish() -> None:
    """Small gradients squared are below float16: Adam would then divide by next to nothing."""
    weight = number(0.0)
    inner = torch.optim.Adam([weight], lr=0.1)
    optimizer = hvd.DistributedOptimizer(
        inner, sync_period=1, buffers="average", compression=hvd.Compression.fp16
    )
    step_with(optimizer, 1e-4)
    assert inner.state[weight]["exp_avg_sq"].item() == pytest.approx(1e-11, rel=1e-6)
