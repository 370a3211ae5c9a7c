"""Horovod's functions on optimizers, where SlowMo's have more state than Horovod knows of."""

from typing import Any

import horovod.torch as hvd
import torch
from horovod.torch.functions import *  # noqa: F403
from torch import Tensor

from slowmo_hvd.torch.optimizer import DistributedOptimizer


def broadcast_optimizer_state(
    optimizer: torch.optim.Optimizer, root_rank: int, model: torch.nn.Module | None = None
) -> None:
    """Give every rank the root's optimizer state: the inner one, and SlowMo's slow state.

    In the place of ``horovod.torch.broadcast_optimizer_state``, which does not know the slow
    state, fills an empty state by calling ``step()``, and refuses LBFGS. For an optimizer that
    is not SlowMo's it calls Horovod's. A collective over the optimizer's process set.

    Args:
        optimizer: the optimizer, on every rank.
        root_rank: the global rank whose state all take.
        model: for Horovod's function, to find sparse parameters.

    Raises:
        ValueError: the root's state does not fit this rank's optimizer.
    """
    if not isinstance(optimizer, DistributedOptimizer):
        hvd.broadcast_optimizer_state(optimizer, root_rank, model)
        return
    process_set = optimizer.process_set
    if not process_set.included():
        return
    tensors: list[Tensor] = []
    skeleton = _take_out(optimizer.state_dict(), tensors) if hvd.rank() == root_rank else None
    specs = [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors]
    skeleton, specs = hvd.broadcast_object(
        (skeleton, specs), root_rank, name="slowmo.optimizer_state", process_set=process_set
    )
    if hvd.rank() != root_rank:
        tensors = [torch.empty(shape, dtype=dtype) for dtype, shape in specs]
    received = [
        _broadcast(tensor, root_rank, f"slowmo.optimizer_state.{index}", process_set)
        for index, tensor in enumerate(tensors)
    ]
    # The root loads too, so that all ranks compare notes alike in their next step.
    optimizer.load_state_dict(_put_back(skeleton, received))


class _Hole:
    """Stands in a nested structure for a tensor that travels by itself."""

    def __init__(self, index: int) -> None:
        self.index = index


def _take_out(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors.append(value)
        return _Hole(len(tensors) - 1)
    if isinstance(value, dict):
        return {key: _take_out(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_take_out(item, tensors) for item in value)
    return value


def _put_back(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, _Hole):
        return tensors[value.index]
    if isinstance(value, dict):
        return {key: _put_back(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_put_back(item, tensors) for item in value)
    return value


def _broadcast(tensor: Tensor, root_rank: int, name: str, process_set: Any) -> Tensor:
    """The root's tensor on every rank, on the CPU: as bytes, since Horovod knows no bfloat16."""
    contiguous = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    wire = contiguous.view(-1).view(torch.uint8)
    if wire.numel():
        hvd.broadcast_(wire, root_rank, name=name, process_set=process_set)
    return contiguous
