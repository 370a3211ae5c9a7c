"""`import slowmo_hvd.torch as hvd` offers all that `import horovod.torch as hvd` offers."""

import importlib
import inspect
import pkgutil
import sys

import horovod.torch
import pytest
import torch
from models import Linear, number, step_with, train
from ranks import by_rank

import slowmo_hvd.torch as hvd


def test_every_public_name_is_here() -> None:
    names = {name for name in dir(horovod.torch) if not name.startswith("_")}
    assert names <= set(dir(hvd))


def test_only_what_slowmo_changes_is_another_object() -> None:
    names = {name for name in dir(horovod.torch) if not name.startswith("_")}
    changed = {name for name in names if getattr(hvd, name) is not getattr(horovod.torch, name)}
    changed -= {name for name in changed if inspect.ismodule(getattr(horovod.torch, name))}
    assert changed == {"DistributedOptimizer", "broadcast_optimizer_state", "join"}


def test_no_module_of_ours_has_the_name_of_a_function() -> None:
    """An imported submodule takes the place of the package's attribute of that name."""
    for _, name, _ in pkgutil.iter_modules(hvd.__path__):
        theirs = getattr(horovod.torch, name, None)
        assert theirs is None or inspect.ismodule(theirs), name


@pytest.mark.ranks(2)
def test_a_script_broadcasts_a_tensor() -> None:
    """As Horovod's ImageNet example does with the epoch to resume from."""
    assert hvd.broadcast(torch.tensor(7 + hvd.rank()), root_rank=1, name="epoch").item() == 8


SUBMODULES = sorted(
    name.removeprefix("horovod.torch.")
    for _, name, _ in pkgutil.walk_packages(horovod.torch.__path__, "horovod.torch.")
    if name in sys.modules
)


@pytest.mark.parametrize("name", SUBMODULES)
def test_every_submodule_is_here_with_what_it_defines(name: str) -> None:
    ours = importlib.import_module(f"slowmo_hvd.torch.{name}")
    theirs = importlib.import_module(f"horovod.torch.{name}")
    defined = {
        public
        for public, value in vars(theirs).items()
        if not public.startswith("_") and getattr(value, "__module__", "") == theirs.__name__
    }
    assert not defined - set(dir(ours))


def test_elastic_can_be_imported_in_every_way_that_scripts_do() -> None:
    import slowmo_hvd.torch.elastic
    from slowmo_hvd.torch.elastic import ElasticSampler, TorchState
    from slowmo_hvd.torch.elastic.sampler import ElasticSampler as Sampler

    assert slowmo_hvd.torch.elastic is hvd.elastic
    assert ElasticSampler is Sampler is hvd.elastic.ElasticSampler
    assert TorchState is hvd.elastic.TorchState


def test_a_star_import_brings_all() -> None:
    names: dict[str, object] = {}
    exec("from slowmo_hvd.torch import *", names)
    assert names["DistributedOptimizer"] is hvd.DistributedOptimizer
    assert names["allreduce"] is horovod.torch.allreduce
    assert {"init", "rank", "size", "elastic", "SyncRecord"} <= set(names)


@pytest.mark.ranks(1, 2)
def test_the_clipping_idiom_of_horovod_scripts_runs_and_counts_one_step() -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), sync_period=2)
    for _ in range(2):
        weight.grad = torch.full((1,), by_rank(8.0, 4.0))
        optimizer.synchronize()
        torch.nn.utils.clip_grad_norm_([weight], max_norm=2.0)
        with optimizer.skip_synchronize():
            optimizer.step()
    assert optimizer.sync_stats.syncs == 1
    assert weight.item() == pytest.approx(-4)


@pytest.mark.ranks(1)
def test_two_backward_passes_have_the_gradient_that_horovod_gives_them() -> None:
    trained = []
    for module in (horovod.torch, hvd):
        model = Linear(torch.float64)
        optimizer = module.DistributedOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1),
            named_parameters=model.named_parameters(),
            backward_passes_per_step=2,
        )
        for step in range(4):
            optimizer.zero_grad()
            for _ in range(2):
                ((model(torch.ones(1, 3, dtype=torch.float64)) - step) ** 2).sum().backward()
            optimizer.step()
        trained.append(model)
    torch.testing.assert_close(trained[0].first, trained[1].first, rtol=0, atol=1e-12)
    torch.testing.assert_close(trained[0].second, trained[1].second, rtol=0, atol=1e-12)


@pytest.mark.ranks(1)
def test_the_number_of_backward_passes_can_be_set_later() -> None:
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([number(0.0)], lr=1.0))
    optimizer.set_backward_passes_per_step(3)
    assert optimizer.backward_passes_per_step == 3


@pytest.mark.ranks(1, 2)
def test_a_horovod_script_runs_with_the_import_changed_and_nothing_else() -> None:
    model = Linear(seed=hvd.rank())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 * hvd.size(), momentum=0.9)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    optimizer = hvd.DistributedOptimizer(
        optimizer,
        named_parameters=model.named_parameters(),
        compression=hvd.Compression.fp16,
        op=hvd.Average,
    )
    train(model, optimizer, range(13))
    assert optimizer.sync_stats.syncs == 1
    mean = hvd.allreduce(torch.tensor(1.0 + hvd.rank()), name="loss")
    assert mean.item() == (1 + hvd.size()) / 2


@pytest.mark.ranks(1)
def test_methods_that_only_the_inner_optimizer_has_are_reached() -> None:
    class WithModes(torch.optim.SGD):
        mode = "train"

        def eval(self) -> None:
            self.mode = "eval"

    inner = WithModes([number(0.0)], lr=1.0)
    optimizer = hvd.DistributedOptimizer(inner)
    optimizer.eval()
    assert inner.mode == "eval"
    with pytest.raises(AttributeError, match="no_such_method"):
        optimizer.no_such_method()


@pytest.mark.ranks(1)
def test_the_rank_and_size_functions_are_horovods() -> None:
    step_with(hvd.DistributedOptimizer(torch.optim.SGD([number(0.0)], lr=1.0)), 1.0)
    assert (hvd.rank(), hvd.size()) == (horovod.torch.rank(), horovod.torch.size())
