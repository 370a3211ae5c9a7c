"""A worker in PyTorch, for the tests of both frameworks."""

from typing import Any

import torch

import slowmo_hvd.torch as hvd


def error_out_of(error: type[Exception]) -> tuple[type[Exception], ...]:
    """What ``error``, raised in a sync, is to the script."""
    return (error,)


class SGDWorker:
    """See tests/workers.py."""

    def __init__(
        self, size: int, *, lr: float, momentum: float, loss_scaled: bool, **slowmo: Any
    ) -> None:
        self._weights = torch.nn.Parameter(torch.zeros(size))
        self.inner = torch.optim.SGD([self._weights], lr=lr, momentum=momentum)
        self.optimizer = hvd.DistributedOptimizer(self.inner, **slowmo)
        self._scaler = torch.amp.GradScaler("cpu", growth_interval=3, enabled=loss_scaled)

    def step(self, gradient: float) -> None:
        self.optimizer.zero_grad()
        self._scaler.scale((self._weights * gradient).sum()).backward()
        self._scaler.step(self.optimizer)
        self._scaler.update()

    def weights(self) -> list[float]:
        values: list[float] = self._weights.tolist()
        return values

    def take_all_from(self, root: int) -> None:
        hvd.broadcast_parameters({"weights": self._weights.data}, root_rank=root)
        hvd.broadcast_optimizer_state(self.optimizer, root_rank=root)

    def steps_taken(self) -> int:
        steps: int = self.optimizer.state_dict()["slowmo"]["step"]
        return steps

    def momentum(self) -> list[float]:
        buffers = self.inner.state.get(self._weights, {})
        buffer = buffers.get("momentum_buffer")
        return [0.0] * len(self._weights) if buffer is None else buffer.tolist()

    def set_momentum(self, value: float) -> None:
        self.inner.state[self._weights]["momentum_buffer"].fill_(value)

    def slow_momentum(self) -> list[float]:
        momenta = self.optimizer.state_dict()["slowmo"]["momentum"]
        return momenta[0].tolist() if momenta else [0.0] * len(self._weights)
