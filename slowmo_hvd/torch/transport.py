"""The collectives of SlowMo in PyTorch: only sums over the workers.

Every rank calls these in the same order with the same names and sizes, because the engine's calls
depend only on the schedule and on what the ranks agreed on. A sum is also the only collective that
Horovod still carries out after a rank has called ``hvd.join()``: such a rank adds zeros.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError
from torch import Tensor

from slowmo_hvd.core.critical_section import CriticalSections
from slowmo_hvd.core.stall import StallWatch
from slowmo_hvd.core.transport import Sealed
from slowmo_hvd.core.transport import Transport as CoreTransport
from slowmo_hvd.torch.rooms import Room

stall_watch = StallWatch(hvd.rank, hvd.shutdown, HorovodInternalError)  #: of this process
critical = CriticalSections(hvd.rank, HorovodInternalError)  #: of this process


class Transport(CoreTransport):
    """See `slowmo_hvd.core.transport`. Tensors are summed in place."""

    critical = critical
    stall_watch = stall_watch
    wires = 3

    def __init__(self, process_set: Any, compression: Any = None) -> None:
        super().__init__(process_set, compression)
        self._kept: dict[Any, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For deepcopy and pickle: between two syncs the wires hold nothing."""
        # Horovod compares the global process set by identity, so a copy would be another set.
        everyone = self.process_set is hvd.global_process_set
        return {
            "process_set": None if everyone else self.process_set,
            "compression": self.compression,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        process_set = state["process_set"]
        self.__init__(  # type: ignore[misc]
            hvd.global_process_set if process_set is None else process_set, state["compression"]
        )

    def memory(self, room: Room, size: int, slot: int) -> Tensor:
        """A wire with any contents.

        On a CPU it is kept from sync to sync, because new memory of this size costs more than the
        arithmetic of a sync. A GPU has torch's caching allocator for that.
        """
        key = (room.device, room.wire), slot
        wire = self._kept.get(key)
        if wire is None or wire.numel() < size:
            self._kept.pop(key, None)
            del wire  # first free, then allocate
            wire = torch.empty(size, dtype=room.wire, device=room.device)
            if room.device.type == "cpu":
                self._kept[key] = wire
        return wire[:size]

    def start_numbers(self, numbers: Sequence[float], name: str) -> tuple[Tensor, int | None]:
        """Start the sum of plain numbers."""
        row = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        return row, None if self.alone else self._start(row, name)

    def _finish_numbers(self, started: tuple[Tensor, int | None]) -> list[float]:
        """Wait for that sum."""
        row, handle = started
        if handle is not None:
            wait(handle)
        numbers: list[float] = row.tolist()
        return numbers

    def range(self, name: str) -> contextlib.AbstractContextManager[Any]:
        """A range of torch.profiler."""
        made: contextlib.AbstractContextManager[Any] = torch.profiler.record_function(name)
        return made

    def in_background(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """The call without a graph, and on the streams of this thread."""
        initialised = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        devices = range(torch.cuda.device_count() if initialised else 0)
        streams = [torch.cuda.current_stream(device) for device in devices]

        def on_streams() -> Any:
            with contextlib.ExitStack() as stack:
                for stream in streams:
                    stack.enter_context(torch.cuda.stream(stream))
                with torch.no_grad():
                    return call()

        return on_streams

    def _largest(self, wire: Tensor) -> float:
        least, most = torch.aminmax(wire)  # abs() would need as much memory again
        return max(-least.item(), most.item())

    def _send(self, sealed: Sealed) -> None:
        wire = sealed.wire
        if sealed.compressed:
            wire, sealed.context = self.compression.compress(wire.mul_(sealed.scale))
        sealed.handle = self._start(wire, sealed.name)

    def _receive(self, sealed: Sealed) -> None:
        total = wait(sealed.handle)
        if sealed.compressed:
            if self.compression is not hvd.Compression.fp16:  # fp16's needs as much memory again
                total = self.compression.decompress(total, sealed.context)
            sealed.wire.copy_(total).mul_(1 / sealed.scale)

    def _start(self, tensor: Tensor, name: str) -> int:
        self.sent += tensor.nbytes
        handle: int = hvd.allreduce_async_(
            tensor, name=name, op=hvd.Sum, process_set=self.process_set
        )
        return handle


def wait(handle: int) -> Tensor:
    """Wait for a collective, and return its tensor.

    ``hvd.synchronize`` waits in a busy loop, on a core that this host's slower ranks and Horovod's
    own thread could use. Here the pauses grow with the wait, so they add at most a quarter to it.
    """
    pause = 20e-6
    while not hvd.poll(handle):
        time.sleep(pause)
        pause = min(1.25 * pause, 1e-3)
    result: Tensor = hvd.synchronize(handle)
    return result
