"""What a model counts while it trains, besides its parameters: BatchNorm's running statistics."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from slowmo_hvd.core.agreement import as_figures, check_agreement
from slowmo_hvd.core.buckets import Leaf
from slowmo_hvd.core.pipeline import send
from slowmo_hvd.torch.means import sums
from slowmo_hvd.torch.rooms import Room, real, write
from slowmo_hvd.torch.transport import Transport


def check_model(model: Any) -> None:
    """Raise TypeError unless ``model`` is a module or None."""
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(
            "flush() takes the torch.nn.Module whose running statistics to average, or nothing, "
            f"got {type(model).__name__}"
        )


def averaged_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The floating-point and complex buffers in the model's state_dict, each once.

    Integers, such as BatchNorm's count of batches, stay each worker's own. So do buffers that are
    not persistent: they are caches, which may differ in shape between the workers.
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
    model: nn.Module | None, transport: Transport, name: str, step: int, bucket_bytes: int
) -> list[str]:
    """Set every buffer of the model to its mean over the workers where it is finite. A collective.

    So a worker with broken statistics takes the others'. The mean is taken in float64, where the
    mean of equal float32 numbers is exact: a value that no worker changed keeps every bit.

    Args:
        model: the model, or None if all ranks should check that none gave a model.
        transport: how to send.
        name: the name of the collectives, which nothing else uses.
        step: the number of steps taken, for a warning.
        bucket_bytes: the largest size of a bucket.

    Returns:
        The warnings to give.

    Raises:
        ValueError: the ranks' models differ in their buffers, or some ranks gave no model; the same
            error on every rank, and nothing has changed.
    """
    buffers = {} if model is None else averaged_buffers(model)
    forms = [[name, list(buffer.shape), str(buffer.dtype)] for name, buffer in buffers.items()]
    figures = as_figures({"the model given to flush()": "no model" if model is None else forms})
    gather = partial(transport.gather, name=f"{name}.figures")
    with transport.critical.alike():
        check_agreement(figures, gather(figures.values), gather)
    numbers = {name: real(buffer) for name, buffer in buffers.items()}
    finite = {name for name, buffer in numbers.items() if buffer.isfinite().all()}
    # A mask with -inf in it is not a broken statistic.
    broken = {name for name, buffer in numbers.items() if buffer.isnan().any()}
    flags = [float(name in those) for those in (finite, broken) for name in numbers]
    counts = transport.sum_numbers(flags, f"{name}.finite")
    owners = dict(zip(numbers, counts[: len(numbers)], strict=True))

    def land(name: str, inside: slice, total: Tensor) -> None:
        if owners[name]:
            write(numbers[name], inside, total / owners[name])

    wide = torch.float64
    leaves = {
        name: Leaf(buffer.numel(), Room(buffer.device, wide, wide), 0)
        for name, buffer in numbers.items()
    }
    given = {name: buffer for name, buffer in numbers.items() if name in finite}
    send(sums(leaves, given, land, bucket_bytes, "buffers"), transport, name)
    by_name = zip(numbers, counts[len(numbers) :], strict=True)
    lost = [name for name, having_nan in by_name if having_nan and not owners[name]]
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
