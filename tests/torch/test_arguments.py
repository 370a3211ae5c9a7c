"""Bad input: every argument out of range, of the wrong type, and unknown."""

import inspect
import sys
from typing import Any

import horovod.torch
import pytest
import torch
from launch import run
from models import Linear, number
from torch import nn

import slowmo_hvd.torch as hvd


def wrap(**arguments: Any) -> hvd.DistributedOptimizer:
    return hvd.DistributedOptimizer(torch.optim.SGD([number(0.0)], lr=1.0), **arguments)


@pytest.mark.parametrize(
    ("argument", "value", "legal"),
    [
        ("sync_period", 0, "an int >= 1, got 0"),
        ("sync_period", -3, "an int >= 1, got -3"),
        ("slow_lr", 0, "a finite number > 0, got 0"),
        ("slow_lr", -0.5, "a finite number > 0, got -0.5"),
        ("slow_lr", float("inf"), "a finite number > 0, got inf"),
        ("slow_lr", float("nan"), "a finite number > 0, got nan"),
        ("slow_momentum", 1.0, "a number with 0 <= slow_momentum < 1, got 1.0"),
        ("slow_momentum", -0.1, "a number with 0 <= slow_momentum < 1, got -0.1"),
        ("slow_momentum", float("nan"), "a number with 0 <= slow_momentum < 1, got nan"),
        ("warmup_steps", -1, "an int >= 0, got -1"),
        ("buffers", "keep", "one of 'maintain', 'reset', 'average', got 'keep'"),
        ("backward_passes_per_step", 0, "an int >= 1, got 0"),
    ],
)
def test_out_of_range(argument: str, value: Any, legal: str) -> None:
    with pytest.raises(ValueError, match=f"^{argument} must be {legal}"):
        wrap(**{argument: value})


@pytest.mark.parametrize(
    ("argument", "value", "legal"),
    [
        ("sync_period", 2.0, "an int >= 1, got 2.0"),
        ("sync_period", "2", "an int >= 1, got '2'"),
        ("sync_period", True, "an int >= 1, got True"),
        ("sync_period", None, "an int >= 1, got None"),
        ("slow_lr", "1", "a finite number > 0, got '1'"),
        ("slow_lr", None, "a finite number > 0, got None"),
        ("slow_momentum", "0.5", "a number with 0 <= slow_momentum < 1, got '0.5'"),
        ("slow_momentum", [0.5], r"a number with 0 <= slow_momentum < 1, got \[0.5\]"),
        ("nesterov", 1, "True or False, got 1"),
        ("nesterov", "yes", "True or False, got 'yes'"),
        ("warmup_steps", 1.5, "an int >= 0, got 1.5"),
        ("buffers", None, "one of 'maintain', 'reset', 'average', got None"),
        ("buffers", 3, "one of 'maintain', 'reset', 'average', got 3"),
        ("backward_passes_per_step", 1.0, "an int >= 1, got 1.0"),
        ("backward_passes_per_step", True, "an int >= 1, got True"),
    ],
)
def test_of_the_wrong_type(argument: str, value: Any, legal: str) -> None:
    with pytest.raises(TypeError, match=f"^{argument} must be {legal}"):
        wrap(**{argument: value})


def test_nesterov_without_momentum() -> None:
    with pytest.raises(ValueError, match="nesterov=True needs slow_momentum > 0, got 0"):
        wrap(nesterov=True, slow_momentum=0)


def test_unknown_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'slow_momentun'"):
        wrap(slow_momentun=0.5)


def test_slowmos_own_arguments_are_keywords_only() -> None:
    parameters = inspect.signature(hvd.DistributedOptimizer).parameters
    horovods = list(inspect.signature(horovod.torch.DistributedOptimizer).parameters)
    assert list(parameters)[: len(horovods)] == horovods
    for name in list(parameters)[len(horovods) :]:
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize(
    ("op", "text"),
    [
        (hvd.Adasum, "op=Adasum cannot be used with SlowMo: Adasum combines gradients"),
        (hvd.Sum, "op=Sum cannot be used with SlowMo: SlowMo is defined by the workers' mean"),
        (hvd.Max, "op=Max cannot be used"),
        ("mean", "op='mean' cannot be used"),
    ],
)
def test_other_reductions_are_refused(op: Any, text: str) -> None:
    with pytest.raises(ValueError, match=rf"{text}.*use op=hvd\.Average"):
        wrap(op=op)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("gradient_predivide_factor", 2.0), ("num_groups", 3), ("groups", [[number(0.0)]])],
)
def test_what_sends_gradients_in_horovod_is_refused(argument: str, value: Any) -> None:
    with pytest.raises(
        ValueError, match=f"(?s)^{argument}=.* has no meaning for SlowMo.*leave it at"
    ):
        wrap(**{argument: value})


def test_horovods_defaults_may_be_spelled_out() -> None:
    model = Linear()
    hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0),
        named_parameters=model.named_parameters(),
        compression=hvd.Compression.none,
        backward_passes_per_step=1,
        op=hvd.Average,
        gradient_predivide_factor=1.0,
        num_groups=0,
        groups=None,
        sparse_as_dense=False,
        process_set=hvd.global_process_set,
    )


@pytest.mark.parametrize("given", [None, "SGD", torch.optim.SGD, Linear()])
def test_only_a_torch_optimizer_can_be_inside(given: Any) -> None:
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got"):
        hvd.DistributedOptimizer(given)


@pytest.mark.parametrize("module", [hvd, horovod.torch])
def test_a_distributed_optimizer_inside_ours_is_refused(module: Any) -> None:
    model = Linear()
    inner = module.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0), named_parameters=model.named_parameters()
    )
    with pytest.raises(ValueError, match="is a DistributedOptimizer already; give the optimizer"):
        hvd.DistributedOptimizer(inner)


def test_ours_inside_horovods_is_refused() -> None:
    model = Linear()
    ours = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=1.0))
    with pytest.raises((TypeError, ValueError)):
        horovod.torch.DistributedOptimizer(ours, named_parameters=model.named_parameters())


def test_an_optimizer_without_a_learning_rate_is_refused() -> None:
    class Rateless(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {})

    with pytest.raises(ValueError, match="Rateless has no 'lr' in parameter group 0"):
        hvd.DistributedOptimizer(Rateless([number(0.0)]))


def test_a_learning_rate_that_the_optimizer_sets_itself_is_refused() -> None:
    from transformers.optimization import Adafactor

    text = r"Adafactor has lr=None in parameter group 0.*give lr=\.\.\., and relative_step=False"
    with pytest.raises(ValueError, match=text):
        hvd.DistributedOptimizer(Adafactor([number(0.0)]))
    hvd.DistributedOptimizer(Adafactor([number(0.0)], lr=0.1, relative_step=False))


def test_an_added_group_without_a_learning_rate_is_refused_and_not_there() -> None:
    optimizer = wrap()
    with pytest.raises(ValueError, match="SGD has lr=None in parameter group 1"):
        optimizer.add_param_group({"params": [number(0.0)], "lr": None})
    assert len(optimizer.param_groups) == 1


SHARDED = """
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
import slowmo_hvd.torch as hvd

hvd.init()
torch.distributed.init_process_group(
    "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
)
part = nn.Parameter(distribute_tensor(torch.zeros(4), init_device_mesh("cpu", (1,)), [Shard(0)]))
whole = hvd.DistributedOptimizer(torch.optim.SGD([nn.Parameter(torch.zeros(4))], lr=1.0))
for attempt in (
    lambda: hvd.DistributedOptimizer(torch.optim.SGD([part], lr=1.0)),
    lambda: whole.add_param_group({"params": [part]}),
):
    try:
        attempt()
    except ValueError as error:
        print("refused:", error)
assert len(whole.param_groups) == 1
torch.distributed.destroy_process_group()
"""


@pytest.mark.limit(180)
def test_parameters_of_which_a_rank_holds_a_part_are_refused() -> None:
    """In a process of its own: a DTensor needs torch's process group."""
    ended = run([sys.executable, "-c", SHARDED], timeout=170)
    assert ended.returncode == 0, ended.stdout
    for group in (0, 1):
        text = f"parameter 0 of group {group} is a DTensor, of which this rank holds a part, and"
        assert f"refused: {text}" in ended.stdout, ended.stdout


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ([("a", 0), ("a", 0)], "names in named_parameters must be unique, got twice: a"),
        ([0, 0], r"must be a sequence of \(name, parameter\) tuples"),
        ([("a", 0)], r"lacks 1 of the optimizer's parameters, .* group 0, shape \(4, 2\)"),
    ],
)
def test_names_are_checked_as_horovod_checks_them(named: list[Any], text: str) -> None:
    model = Linear()
    params = list(model.parameters())
    given = [
        (item[0], params[index]) if isinstance(item, tuple) else params[index]
        for index, item in enumerate(named)
    ]
    with pytest.raises(ValueError, match=text):
        hvd.DistributedOptimizer(torch.optim.SGD(params, lr=1.0), named_parameters=given)


@pytest.mark.parametrize(
    "named",
    [
        [("a", "b", "c")],
        3,
    ],
)
def test_names_that_are_no_pairs(named: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="named_parameters"):
        wrap(named_parameters=named)


def test_a_process_set_that_horovod_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match=r"is not known to Horovod; call hvd\.add_process_set"):
        wrap(process_set=hvd.ProcessSet([0]))


@pytest.mark.parametrize("value", [3, "global", None])
def test_a_process_set_of_the_wrong_type_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="process_set must be"):
        wrap(process_set=value)


@pytest.mark.parametrize("value", [None, "fp16", 16])
def test_a_compression_of_the_wrong_type_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="compression must be"):
        wrap(compression=value)


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_sparse_as_dense_of_the_wrong_type_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="sparse_as_dense must be"):
        wrap(sparse_as_dense=value)


@pytest.mark.parametrize("passes", [0, -1])
def test_set_backward_passes_per_step_checks_its_argument(passes: int) -> None:
    with pytest.raises(
        ValueError, match=f"backward_passes_per_step must be an int >= 1, got {passes}"
    ):
        wrap().set_backward_passes_per_step(passes)


def test_a_sync_hook_must_be_callable() -> None:
    with pytest.raises(TypeError, match="hook must be callable, got 3"):
        wrap().register_sync_hook(3)  # type: ignore[arg-type]


def test_repr_shows_the_settings_and_the_inner_optimizer() -> None:
    text = repr(wrap(sync_period=7))
    assert "sync_period=7" in text
    assert "SGD" in text


def test_a_module_is_not_touched_by_a_refusal() -> None:
    layer = nn.Linear(2, 2)
    inner = torch.optim.SGD(layer.parameters(), lr=1.0)
    with pytest.raises(ValueError, match="sync_period"):
        hvd.DistributedOptimizer(inner, sync_period=0)
    hvd.DistributedOptimizer(inner, sync_period=1)
