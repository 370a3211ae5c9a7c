"""Parameters that are not trained: nothing of them is sent, once all ranks hold the same."""

import zlib
from collections.abc import Collection, Sequence
from typing import Any

import horovod.torch as hvd
import torch
from torch import Tensor

from slowmo_hvd.core.outer import PLAIN_AVERAGE
from slowmo_hvd.core.roll_call import RollCall, call_roll, is_sound, mark
from slowmo_hvd.torch.broadcast import bytes_of
from slowmo_hvd.torch.exchange import critical, gather_figures, sum_
from slowmo_hvd.torch.slow_model import SlowModel


def take_mean(
    slow: SlowModel,
    groups: Sequence[Sequence[Tensor]],
    positions: Collection[int],
    step: int,
    on_nonfinite: str,
    *,
    name: str,
    process_set: Any,
) -> RollCall:
    """Give parameters that were frozen inside a window the mean of the workers. A collective.

    Args:
        slow: has their anchors.
        groups: the parameters of each parameter group.
        positions: of those that were frozen, the same on every rank.
        step: local steps taken, at least 1.
        on_nonfinite: as in ``SlowMoConfig``.
        name: the collective's name, in use for nothing else.
        process_set: the ranks that take part, this one among them.

    Raises:
        FloatingPointError: as in a sync, on every rank alike; nothing has changed.
    """
    model = SlowModel(groups, positions, with_momentum=False)
    model.inherit(slow)
    workers = process_set.size()
    flats = model.displacements(spare=workers)
    tail = flats[0][flats[0].numel() - workers :]
    sound = is_sound(model.squared_norm(flats), [])
    tail.zero_()
    if not sound:
        for flat in flats:
            flat.zero_()
    tail[process_set.rank()] = mark(step, sound=sound)
    sum_(flats, tail, name=name, compression=hvd.Compression.none, process_set=process_set)
    with critical.alike():
        roll = call_roll(tail.tolist(), process_set.ranks, on_nonfinite)
    model.apply(flats, roll.contributors, [PLAIN_AVERAGE] * len(groups))
    return roll


def frozen_without(excluded: Sequence[int], step: int) -> str:
    """The warning, on every rank, that some workers are not in the mean of `take_mean`."""
    ranks = ", ".join(map(str, excluded))
    return (
        f"after {step} steps the weights that were frozen are not finite on rank {ranks}: left out "
        "of their mean"
    )


def take_roots(params: Sequence[Tensor], root: int, *, name: str, process_set: Any) -> float:
    """Give all ranks the root's values, if a checksum of some rank's differs. A collective.

    Args:
        params: dense tensors of any dtype, alike on every rank but for their values.
        root: the global rank whose values all take.
        name: the collectives' name, in use for nothing else.
        process_set: the ranks that take part, this one among them.

    Returns:
        The largest difference of a number from the root's.
    """
    checksum = 0
    for param in params:
        checksum = zlib.crc32(bytes_of(param.cpu()).numpy(), checksum)  # type: ignore[arg-type]
    by_rank = gather_figures([checksum], name=f"{name}.checksum", process_set=process_set)
    if all(row == by_rank[root] for row in by_rank.values()):  # from a sum: on every rank, or none
        return 0.0
    # As integers, whatever the dtype. None overflows in the sum: only the root's are not 0.
    sizes = [param.numel() * param.element_size() for param in params]
    words = torch.zeros(-(-sum(sizes) // 8), dtype=torch.int64, device="cpu")
    wire = words.view(torch.uint8)
    if hvd.rank() == root:
        torch.cat([bytes_of(param.cpu()) for param in params], out=wire[: sum(sizes)])
    sum_([words], words[:0], name=name, compression=hvd.Compression.none, process_set=process_set)
    apart = torch.zeros((), dtype=torch.float64, device="cpu")
    for param, part in zip(params, torch.split(wire[: sum(sizes)], sizes), strict=True):
        roots = part.clone().view(param.dtype).view(param.shape).to(param.device)
        if param.numel():
            gap = (_wide(param) - _wide(roots)).abs().max().cpu()
            apart = torch.maximum(apart, gap)  # a NaN stays one
        param.detach().copy_(roots)
    return apart.item()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)
