"""What a model counts as it trains, beside its parameters: BatchNorm's running statistics."""

from functools import partial
from typing import Any

import horovod.torch as hvd
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from slowmo_hvd.core.agreement import as_figures, check_agreement
from slowmo_hvd.torch.exchange import critical, gather_figures, sum_
from slowmo_hvd.torch.slow_model import real


def check_model(model: Any) -> None:
    """Raise TypeError unless ``model`` is a module or None."""
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(
            "flush() takes the torch.nn.Module whose running statistics to average, or nothing, "
            f"got {type(model).__name__}"
        )


def averaged_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The floating-point and complex buffers that the model's state_dict has, each once.

    Integers, such as BatchNorm's count of batches, stay each worker's own. So do buffers that are
    not persistent: these are caches, which may differ in shape between the workers.
    """
    buffers: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is None or name in module._non_persistent_buffers_set or is_lazy(buffer):
                continue
            if _can_be_averaged(buffer):
                buffers[f"{prefix}.{name}" if prefix else name] = buffer
    once = {id(buffer): name for name, buffer in reversed(buffers.items())}
    return {name: buffer for name, buffer in buffers.items() if once[id(buffer)] == name}


def average_buffers(
    model: nn.Module | None, *, name: str, process_set: Any, step: int
) -> list[str]:
    """Make every buffer of the model its mean over the workers where it is finite. A collective.

    So a worker whose statistics broke takes the others'. In float64, in which the mean of equal
    float32 numbers is exact: what no worker changed keeps every bit.

    Args:
        model: the model, or None to have the ranks compare that they all gave none.
        name: the collectives' name, in use for nothing else.
        process_set: the ranks that take part, this one among them.
        step: how many steps were taken, for a warning.

    Returns:
        What there is to warn of.

    Raises:
        ValueError: the ranks' models differ in their buffers, or some gave none; the same error on
            every rank, and nothing has changed.
    """
    buffers = {} if model is None else averaged_buffers(model)
    forms = [[name, list(buffer.shape), str(buffer.dtype)] for name, buffer in buffers.items()]
    figures = as_figures({"the model given to flush()": "no model" if model is None else forms})
    gather = partial(gather_figures, name=f"{name}.figures", process_set=process_set)
    with critical.alike():
        check_agreement(figures, gather(figures.values), gather)
    if not buffers:  # agreed, hence on every rank
        return []
    wire, parts = _wire(list(buffers.values()))
    tail = wire[wire.numel() - 2 * len(buffers) :]
    no_compression = hvd.Compression.none
    sum_([wire], tail, name=name, compression=no_compression, process_set=process_set)
    finite, nan = tail.view(2, -1).tolist()
    for buffer, part, owners in zip(buffers.values(), parts, finite, strict=True):
        if owners:
            buffer = real(buffer)
            buffer.copy_((part / owners).view(buffer.shape))
    lost = [
        name for name, owners, by in zip(buffers, finite, nan, strict=True) if by and not owners
    ]
    if not lost:
        return []
    return [
        f"after {step} steps {', '.join(lost)} of the model are not finite on any rank, and "
        "flush() leaves them so: go on from the last checkpoint"
    ]


def _can_be_averaged(buffer: Tensor) -> bool:
    if not (buffer.is_floating_point() or buffer.is_complex()):
        return False
    expanded = any(
        step == 0 and size > 1 for step, size in zip(buffer.stride(), buffer.shape, strict=True)
    )
    return buffer.layout == torch.strided and not buffer.is_meta and not expanded


def _wire(buffers: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """All buffers in one float64 tensor, zeros for those that are not finite.

    At its end, for each buffer, a 1 if it is finite, and then again for each a 1 if it has a NaN: a
    mask with -inf in it is no broken statistic.
    """
    sizes = [real(buffer).numel() for buffer in buffers]
    device = buffers[0].device
    wire = torch.zeros(sum(sizes) + 2 * len(sizes), dtype=torch.float64, device=device)
    parts = list(torch.split(wire[: sum(sizes)], sizes))
    flags = []
    for buffer, part in zip(buffers, parts, strict=True):
        part.copy_(real(buffer).reshape(-1))
        flags.append(torch.stack([part.isfinite().all(), part.isnan().any()]))
        part.masked_fill_(~flags[-1][0], 0.0)
    wire[sum(sizes) :].copy_(torch.stack(flags, dim=1).reshape(-1))
    return wire, parts
