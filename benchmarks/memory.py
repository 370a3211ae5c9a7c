"""The memory that the wrapper adds, at its peak at every moment of a training.

Run by ``horovodrun -np 2 python -m benchmarks.memory``, with a number of layers for another size
than 21M parameters. What is told is the high-water mark of the resident set over what was resident
with the bare optimizer, its state, gradients and Horovod's own memory.
"""

import copy
import sys
from collections.abc import Callable, Iterator

import torch

import slowmo_hvd.torch as hvd
from benchmarks.models import fill_gradients, large_model
from benchmarks.peak import peak, resident, tell


def moments(layers: int, **slowmo: object) -> Iterator[tuple[str, int, int]]:
    """What happens, the bytes that it adds at its peak, and the parameters' bytes."""
    model = large_model(layers)
    size = sum(param.numel() * param.element_size() for param in model.parameters())
    fill_gradients(model)
    bare = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    bare.step()
    # Horovod's transport takes memory once, for whoever comes first.
    warm = torch.zeros(size // 4)
    for _ in range(3):
        hvd.allreduce_(warm, name="warm", op=hvd.Sum)
    del warm
    before = resident()
    optimizer = hvd.DistributedOptimizer(bare, sync_period=3, buffers="maintain", **slowmo)

    def steps(count: int) -> Callable[[], None]:
        def take() -> None:
            for _ in range(count):
                optimizer.step()

        return take

    yield "the first step", peak(steps(1)) - before, size
    yield "a sync", peak(steps(3)) - before, size
    yield "another", peak(steps(3)) - before, size
    yield "state_dict()", peak(optimizer.state_dict) - before, size
    saved = [copy.deepcopy(optimizer.state_dict())]
    of_user = sum(tensor.nbytes for tensor in _tensors(saved[0]))
    loading = peak(lambda: optimizer.load_state_dict(saved[0]))
    saved.clear()
    yield "load_state_dict()", loading - before - of_user, size
    yield "the step after load_state_dict()", peak(steps(1)) - before, size
    yield (
        "broadcast_optimizer_state()",
        peak(lambda: hvd.broadcast_optimizer_state(optimizer, root_rank=0)) - before,
        size,
    )
    yield "the step after broadcast_optimizer_state()", peak(steps(1)) - before, size
    optimizer.state_dict()  # waits until nothing is on the wire, which would keep it alive
    if hvd.rank() > 0:  # one that has just come
        del optimizer
        optimizer = hvd.DistributedOptimizer(bare, sync_period=3, buffers="maintain", **slowmo)
    yield (
        "broadcast_optimizer_state() to a rank without a slow state",
        peak(lambda: hvd.broadcast_optimizer_state(optimizer, root_rank=0)) - before,
        size,
    )
    yield "the step after that", peak(steps(1)) - before, size


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def main() -> None:
    hvd.init()
    torch.set_num_threads(1)
    layers = int(sys.argv[1]) if len(sys.argv) > 1 else 80
    for slow_momentum in (0.5, 0.0):
        tell(hvd, moments(layers, slow_momentum=slow_momentum), slow_momentum)


if __name__ == "__main__":
    main()
