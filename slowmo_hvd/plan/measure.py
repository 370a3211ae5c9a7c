"""How long this cluster takes for an allreduce, by its size."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from slowmo_hvd.plan.cost import Measured

_LEAST = 2**12  # bytes
_MOST = 2**28  # bytes; beyond that the line goes on
_FACTOR = 8  # from one size to the next
_ROUNDS = 7  # of which the first two are not counted
_UNCOUNTED = 2


def sizes(nbytes: int) -> list[int]:
    """What is measured for a model of so many bytes: up to all of it, if it is not too large."""
    most = max(min(nbytes, _MOST), 2 * _LEAST)
    found = [most]
    while found[-1] // _FACTOR >= _LEAST:
        found.append(found[-1] // _FACTOR)
    return sorted(found) if len(found) > 1 else [_LEAST, most]


def measure(
    hvd: Any, torch: Any, parameters: int, tell: Callable[[str], None], among: Any
) -> Measured:
    """Time allreduces in float32 and float16. A collective.

    On the GPU that Horovod would use, where there is one.

    Args:
        hvd: Horovod's module for torch, initialised.
        torch: torch.
        parameters: of the model.
        tell: says how it goes.
        among: the process set, this rank in it.
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(hvd.local_rank())
    device = "cuda" if on_gpu else "cpu"
    points: dict[int, list[tuple[float, float]]] = {}
    for dtype in (torch.float32, torch.float16):
        for nbytes in sizes(parameters * dtype.itemsize):
            tensor = torch.zeros(nbytes // dtype.itemsize, dtype=dtype, device=device)
            seconds = [_time(hvd, torch, tensor, among, on_gpu=on_gpu) for _ in range(_ROUNDS)]
            median = statistics.median(seconds[_UNCOUNTED:])
            median_here = torch.tensor([median])
            slowest = hvd.allreduce(median_here, name="slowest", op=hvd.Max, process_set=among)
            points.setdefault(dtype.itemsize, []).append((nbytes, float(slowest)))
            tell(f"allreduce of {nbytes / 1e6:.3f} MB, {dtype}: {float(slowest) * 1e3:.2f} ms")
    return Measured(among.size(), points)


def _time(hvd: Any, torch: Any, tensor: Any, among: Any, *, on_gpu: bool) -> float:
    hvd.allreduce(torch.zeros(1), name="begin", process_set=among)
    begin = time.perf_counter()
    name = f"measured.{tensor.dtype}.{len(tensor)}"
    hvd.allreduce_(tensor, name=name, op=hvd.Sum, process_set=among)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - begin
