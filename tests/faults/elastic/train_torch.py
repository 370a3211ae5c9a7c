"""Elastic training with PyTorch, for the runs with faults. Run by horovodrun through cluster.py."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from faults.elastic.problem import batch, evaluation, learning_rate
from faults.elastic.worker import Worker

import slowmo_hvd.torch as hvd


def tensors(value: Any) -> Iterator[Any]:
    """All arrays and numbers of a state_dict, in order."""
    if isinstance(value, dict):
        value = value.values()
    elif isinstance(value, torch.Tensor):
        yield value.numpy()
        return
    elif not isinstance(value, list | tuple):
        if isinstance(value, int | float):
            yield value
        return
    for item in value:
        yield from tensors(item)


def main() -> None:
    hvd.init()
    torch.set_num_threads(1)
    plan = Worker.plan_of_run()
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        buffers="reset",  # so that all of the state is equal on all ranks where a window begins
        sync_period=plan.sync_period,
        bucket_bytes=256,  # three buckets
        overlap_steps=plan.overlap_steps,
        fragments=plan.fragments,
    )
    state = hvd.elastic.TorchState(model=model, optimizer=optimizer, step=0)

    def contents() -> Iterable[Any]:
        return tensors([model.state_dict(), optimizer.state_dict()])

    worker = Worker(hvd, state, contents)
    worker.watch_copy(state._handlers["model"], "save")
    worker.watch_elastic_sync(state._handlers["model"], "sync")
    optimizer.register_sync_hook(worker.sync_hook)
    seed = worker.plan.seed

    @hvd.elastic.run
    def train(state: Any) -> None:
        worker.begin()
        while state.step < worker.plan.steps:
            worker.wait_for_size()
            x, y = map(torch.from_numpy, batch(seed, state.step, hvd.rank()))
            optimizer.param_groups[0]["lr"] = learning_rate(state.step, worker.plan.steps)
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(x), y).backward()
            worker.before_step()
            optimizer.step()
            state.step += 1
            worker.after_step()
            if state.step % worker.plan.commit_every == 0:
                state.commit()
        optimizer.flush()

    for param in model.parameters():  # rank 0's, after the first sync
        torch.nn.init.normal_(param, std=0.3, generator=_generator(seed, hvd.rank(), param.numel()))
    if worker.plan.step_before:
        x, y = map(torch.from_numpy, batch(seed, 0, hvd.rank()))
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    state.save()
    train(state)
    with torch.no_grad():
        x, y = map(torch.from_numpy, evaluation())
        worker.finish(torch.nn.functional.mse_loss(model(x), y).item())


def _generator(seed: int, rank: int, size: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 10007 + rank * 101 + size)


if __name__ == "__main__":
    main()
