"""Horovod's functions for optimizers, which here also handle SlowMo's slow state."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import horovod.torch as hvd
import torch
from horovod.torch.functions import *  # noqa: F403
from torch import Tensor

from slowmo_hvd.core.living import land_everywhere
from slowmo_hvd.torch.broadcasting import Spec, broadcast_tensors, spec_of
from slowmo_hvd.torch.checkpoint import check_slow_state, slow_state
from slowmo_hvd.torch.optimizer import DistributedOptimizer
from slowmo_hvd.torch.parameters import parameters_of
from slowmo_hvd.torch.transport import critical, stall_watch
from slowmo_hvd.torch.wrappers import layers

_NOT_CALLED = "Likely some rank does not call it, or has died"


def broadcast_optimizer_state(
    optimizer: torch.optim.Optimizer, root_rank: int, model: torch.nn.Module | None = None
) -> None:
    """Give every rank the root's optimizer state: the inner state and SlowMo's slow state.

    It replaces ``horovod.torch.broadcast_optimizer_state``, which does not know the slow state,
    fills an empty state by calling ``step()``, and refuses LBFGS. For an optimizer that is not
    SlowMo's it calls Horovod's function. A collective over the optimizer's process set.

    Args:
        optimizer: the optimizer, on every rank, or Accelerate's or Lightning's wrapper around it.
        root_rank: the global rank whose state all ranks take.
        model: for Horovod's function, to find sparse parameters.

    Raises:
        ValueError: the root's state does not fit this rank's optimizer.
        RuntimeError: on every rank, if a sync failed partway on the root.
    """
    ours = ours_in(optimizer)
    if ours is None:
        hvd.broadcast_optimizer_state(optimizer, root_rank, model)
    elif ours.process_set.included():
        state = _received(ours, root_rank)
        # The root loads too, so that all ranks compare their states in their next step.
        try:
            ours.load_state_dict(state)
        finally:
            ours._training.take_spare()  # made to receive the state, and left over if it is refused


def join(device: int = -1) -> int:
    """Tell the other ranks that this one has no more batches, and wait until all ranks have joined.

    The other ranks train on. It replaces ``horovod.torch.join``: with an overlap, the averages that
    are under way land first.

    Args:
        device: the GPU on which to take part in the others' sums; -1 for the CPU.

    Returns:
        The rank that joined last.
    """
    land_everywhere()
    last: int = hvd.join(device)
    return last


def ours_in(optimizer: Any) -> DistributedOptimizer | None:
    """Find the DistributedOptimizer that ``optimizer`` is, or holds in wrappers of any depth.

    Lightning's wrapper passes for an instance of what it wraps, but does not have its attributes.
    """
    for layer in layers(optimizer):
        if isinstance(layer, DistributedOptimizer) and "_training" in vars(layer):
            return layer
    return None


@torch.inference_mode(False)
@torch.no_grad()
def _received(optimizer: DistributedOptimizer, root_rank: int) -> Any:
    """The root's state_dict; on the root its own. A collective."""
    owner, process_set = optimizer._training.engine, optimizer.process_set
    mine = hvd.rank() == root_rank
    tensors: list[Tensor] = []
    skeleton, refused = None, ""
    if mine:
        try:
            skeleton = _take_out(optimizer.state_dict(), tensors)
        except RuntimeError as error:  # a sync failed partway; the others must know
            refused = str(error)
    with critical.entered(owner, "broadcast_optimizer_state", unnamed=True):
        with stall_watch.waiting(owner, "in broadcast_optimizer_state", cause=_NOT_CALLED):
            refused, skeleton, specs = hvd.broadcast_object(
                (refused, skeleton, list(map(spec_of, tensors))),
                root_rank,
                name="slowmo.optimizer_state",
                process_set=process_set,
            )
        if refused:
            with critical.alike():
                raise RuntimeError(f"rank {root_rank} has no state to broadcast: {refused}")
        if not mine:
            tensors = _destinations(optimizer, skeleton, specs)
        size = sum(spec.bytes for spec in specs)
        with stall_watch.sending(owner, "in broadcast_optimizer_state", size=size):
            broadcast_tensors(
                tensors,
                specs,
                root_rank,
                name="slowmo.optimizer_state",
                devices={param.device.type: param.device for param in parameters_of(optimizer)},
                process_set=process_set,
            )
    return _put_back(skeleton, tensors)


def _destinations(
    optimizer: DistributedOptimizer, skeleton: Any, specs: Sequence[Spec]
) -> list[Tensor]:
    """The tensors in which this rank receives the root's.

    They are those of its own state, if that has the same tensors and the root's state will be
    accepted: this needs no memory. If this rank has no such slow state, one is made, and training
    goes on with it. Otherwise all tensors are new, and those outside the slow state are on the CPU,
    so that a state that is refused changes nothing.
    """
    inner = optimizer._inner.state_dict()
    # A RuntimeError means that a sync failed partway here; what is received mends it.
    with contextlib.suppress(KeyError, ValueError, RuntimeError):
        slow_of_own = slow_state(optimizer._training, inner)
        own = _paired(skeleton, {**inner, "slowmo": slow_of_own})
        return _checked(optimizer, skeleton, specs, own)
    slow = skeleton["slowmo"]
    spare = optimizer._training.make_spare(slow["anchor"], slow["launched"])
    parts = {"anchor": spare.anchors(), "momentum": spare.momenta(), "launched": spare.at_launch()}
    with contextlib.suppress(KeyError, ValueError, RuntimeError):
        own = _paired(skeleton, {**inner, "slowmo": parts})
        return _checked(optimizer, skeleton, specs, own)
    fresh = _paired(slow, parts)
    return [
        fresh[index]
        if index in fresh and _is_as(fresh[index], spec)
        else torch.empty(spec.shape, dtype=spec.dtype, device="cpu")
        for index, spec in enumerate(specs)
    ]


def _checked(
    optimizer: DistributedOptimizer,
    skeleton: Any,
    specs: Sequence[Spec],
    own: Mapping[int, Tensor],
) -> list[Tensor]:
    """Return these tensors if they match the root's and what they receive will be accepted.

    Raises:
        ValueError: they do not match, or it will not be accepted.
    """
    same = [own.get(index) for index in range(len(specs))]
    if not _can_receive(same, specs):
        raise ValueError("other tensors than the root's")
    state = _put_back(skeleton, same)
    check_slow_state(optimizer._training, state.pop("slowmo"), state)
    return same


def _can_receive(
    tensors: Sequence[Tensor | None], specs: Sequence[Spec]
) -> TypeGuard[list[Tensor]]:
    there = [tensor for tensor in tensors if tensor is not None]
    memory = [tensor.data_ptr() for tensor in there if tensor.numel()]
    return (
        len(there) == len(specs)
        and all(map(_is_as, there, specs))
        and len(memory) == len(set(memory))
    )


def _is_as(tensor: Tensor, spec: Spec) -> bool:
    fits = tensor.dtype == spec.dtype and tuple(tensor.shape) == spec.shape
    return fits and type(tensor) in (Tensor, torch.nn.Parameter) and tensor.is_contiguous()


class _Hole:
    """Stands in a nested structure for a tensor that travels separately."""

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


def _paired(value: Any, own: Any) -> dict[int, Tensor]:
    """The tensors in ``own`` at the places where ``value`` has holes, by the holes' numbers."""
    found: dict[int, Tensor] = {}
    if isinstance(value, _Hole):
        if isinstance(own, Tensor):
            found[value.index] = own
    elif isinstance(value, dict) and isinstance(own, dict):
        for key, item in value.items():
            found |= _paired(item, own.get(key))
    elif isinstance(value, list | tuple) and isinstance(own, list | tuple):
        for item, of_own in zip(value, own, strict=False):
            found |= _paired(item, of_own)
    return found


def _put_back(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, _Hole):
        return tensors[value.index]
    if isinstance(value, dict):
        return {key: _put_back(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_put_back(item, tensors) for item in value)
    return value
