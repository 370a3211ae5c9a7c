"""torch.compile: the inner step may be compiled; counting and communication stay outside.

With the "eager" backend, which traces as any other and then runs without a C++ compiler.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch._dynamo.testing
from models import Linear, loss_of, number, train, weights
from ranks import equal_on_all_ranks
from torch import Tensor

import slowmo_hvd.torch as hvd

# torch warns of what its own compiler does: it looks at the .grad of all that it meets, and
# imports modules that still use torch.jit.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings(r"ignore:.torch\.jit\.\w+. is deprecated:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def trained(
    *, compile_inner: bool = False, compile_loop: bool = False
) -> tuple[Linear, hvd.DistributedOptimizer]:
    model = Linear()
    inner = torch.optim.Adam(model.parameters(), lr=0.1)
    if compile_inner:
        inner.step = torch.compile(inner.step, backend="eager")  # type: ignore[method-assign]
    optimizer = hvd.DistributedOptimizer(inner, sync_period=2)

    def one_step(step: int) -> None:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()

    body = torch.compile(one_step, backend="eager") if compile_loop else one_step
    for step in range(5):
        body(step)
    return model, optimizer


@pytest.mark.ranks(1, 2)
def test_a_compiled_inner_step_trains_as_a_plain_one() -> None:
    expected, _ = trained()
    model, optimizer = trained(compile_inner=True)
    assert optimizer.sync_stats.syncs == 2
    for ours, theirs in zip(weights(model), weights(expected), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.ranks(1, 2)
def test_a_compiled_training_step_still_counts_and_communicates() -> None:
    model, optimizer = trained(compile_loop=True)
    assert optimizer.sync_stats.syncs == 2
    optimizer.flush()
    assert equal_on_all_ranks(model)
    expected, plain = trained()
    plain.flush()
    for ours, theirs in zip(weights(model), weights(expected), strict=True):
        torch.testing.assert_close(ours, theirs)


def graphs(inner: torch.optim.Optimizer, buffers: str) -> int:
    """How often a compiled step of ``inner`` is compiled in twelve windows."""
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounter()
    inner.step = torch.compile(inner.step, backend=counter)  # type: ignore[method-assign]
    optimizer = hvd.DistributedOptimizer(inner, sync_period=2, buffers=buffers)
    (weight,) = inner.param_groups[0]["params"]
    for _ in range(24):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert optimizer.sync_stats.syncs == 12
    return int(counter.frame_count)


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize(
    "make",
    [
        lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True),
        lambda weights: torch.optim.Adam(weights, lr=torch.tensor(0.1)),
    ],
    ids=["SGD", "Adam"],
)
def test_a_reset_does_not_have_a_step_compiled_again(
    make: Callable[[list[Tensor]], torch.optim.Optimizer],
) -> None:
    kept, reset = (graphs(make([number(1.0)]), buffers) for buffers in ("maintain", "reset"))
    assert 1 <= reset == kept <= 3


@pytest.mark.ranks(1, 2)
def test_a_compiled_model_trains() -> None:
    model = Linear()
    compiled = torch.compile(model, backend="eager")
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(compiled.parameters(), lr=0.1), sync_period=2
    )
    train(compiled, optimizer, range(4))
    assert optimizer.sync_stats.syncs == 2
    assert equal_on_all_ranks(model)
