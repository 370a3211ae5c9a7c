"""The collectives of SlowMo: sums over the workers, and nothing else.

Every rank calls these in the same order with the same names and sizes, because the optimizer
calls them by the schedule and what they agreed on alone. A sum is also the one collective that
Horovod still carries out after a rank has called ``hvd.join()``: such a rank adds zeros.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError
from torch import Tensor

from slowmo_hvd.core.critical_section import CriticalSections
from slowmo_hvd.core.stall import StallWatch

stall_watch = StallWatch(hvd.rank, hvd.shutdown, HorovodInternalError)  #: of this process
critical = CriticalSections(hvd.rank, HorovodInternalError)  #: likewise


def sum_(
    flats: Sequence[Tensor], tail: Tensor, *, name: str, compression: Any, process_set: Any
) -> int:
    """Sum flat tensors over the process set in place; return the bytes handed to allreduce.

    Args:
        flats: contiguous float tensors, of equal sizes on every rank.
        tail: the end of ``flats[0]``, figures that must arrive unharmed: with a compression they
            travel by themselves and uncompressed.
        name: the collectives' name, in use for nothing else.
        compression: a Horovod compressor; the same on every rank, which decides what is sent.
        process_set: the ranks that take part, this one among them.
    """
    if process_set.size() == 1:  # equal on every rank: there is only one
        return 0
    if compression is hvd.Compression.none:
        handles = [_start(flat, f"{name}.{index}", process_set) for index, flat in enumerate(flats)]
        for handle in handles:
            wait(handle)
        return sum(map(_size, flats))
    return _sum_compressed(flats, tail, name, compression, process_set)


def _sum_compressed(
    flats: Sequence[Tensor], tail: Tensor, name: str, compression: Any, process_set: Any
) -> int:
    """As `sum_`, with the tensors scaled to what half precision can hold.

    Displacements are smaller than gradients by the learning rate, and would vanish below 6e-8.
    So the workers first add up their largest elements, beside the tail: no element of the sum is
    larger than that, and a power of two that brings it near 2**15 is exact and equal everywhere.
    """
    figures = torch.cat([tail.double(), tail.new_zeros(1, dtype=torch.float64)])
    tail.zero_()
    figures[-1] = max(float(flat.abs().max()) for flat in flats if flat.numel())
    wait(_start(figures, f"{name}.tail", process_set))
    largest = float(figures[-1])
    usable = 0 < largest < math.inf  # a NaN is not
    scale = 2.0 ** min(math.floor(15 - math.log2(largest)), 100) if usable else 1.0
    sent, pending = _size(figures), []
    for index, flat in enumerate(flats):
        wire, context = compression.compress(flat.mul_(scale))
        sent += _size(wire)
        pending.append((flat, _start(wire, f"{name}.{index}", process_set), context))
    for flat, handle, context in pending:
        torch.mul(compression.decompress(wait(handle), context), 1 / scale, out=flat)
    tail.copy_(figures[:-1])
    return sent


def _size(tensor: Tensor) -> int:
    """Bytes."""
    return tensor.numel() * tensor.element_size()


def gather_figures(
    figures: Sequence[float], *, name: str, process_set: Any
) -> dict[int, list[float]]:
    """Every worker's figures by its rank; ranks that have joined are left out.

    An allgather written as a sum of float64 rows, so that it works after a ``hvd.join()`` too,
    and carries plain numbers.
    """
    row = torch.tensor([1.0, hvd.rank(), *figures], dtype=torch.float64, device="cpu")
    rows = row.new_zeros(process_set.size(), len(row))  # not where torch.set_default_device says
    rows[process_set.rank()] = row
    if process_set.size() > 1:
        wait(_start(rows, name, process_set))
    return {int(rank): row for present, rank, *row in rows.tolist() if present}


def _start(tensor: Tensor, name: str, process_set: Any) -> int:
    handle: int = hvd.allreduce_async_(tensor, name=name, op=hvd.Sum, process_set=process_set)
    return handle


def wait(handle: int) -> Tensor:
    """The finished collective's tensor.

    ``hvd.synchronize`` spins until then, on a core that this host's slower ranks and Horovod's
    own thread could use. The pauses grow with the wait, so they add a quarter to it at the most.
    """
    pause = 20e-6
    while not hvd.poll(handle):
        time.sleep(pause)
        pause = min(1.25 * pause, 1e-3)
    result: Tensor = hvd.synchronize(handle)
    return result
