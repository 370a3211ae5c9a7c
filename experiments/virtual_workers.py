"""m workers in one process: their weights lie one behind the other in one tensor.

Forward and backward are mapped over the workers, an elementwise inner optimizer steps all of them
at once, and when to synchronise and by which coefficients comes from the package's own core.
``tests/experiments`` checks that they end where real workers under horovodrun do.
"""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from experiments.tasks.task import Batch, Forward
from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.schedule import MeanLearningRate, Schedule, Sync
from slowmo_hvd.core.windows import settings_of

Inner = Callable[[Iterable[Tensor], float], torch.optim.Optimizer]
Loss = Callable[[Forward, Batch], Tensor]


class VirtualWorkers:
    """m workers with one model each.

    Args:
        model: with which all begin.
        workers: m.
        loss: ``loss(forward, batch)``, the mean of a worker's batch.
        inner: makes the base optimizer from parameters and a learning rate. What it computes must
            not reach from one element of a parameter to another.
        config: SlowMo's; None for gradient averaging in every step.
        scaled: whether u is divided by γ, as in Algorithm 1. If not, γ counts as 1 throughout:
            BMUF's momentum, which is of the displacement.

    Attributes:
        syncs: allreduces of the model's size so far.

    Raises:
        ValueError: the configuration has an overlap or fragments, which are not simulated.
    """

    def __init__(
        self,
        model: nn.Module,
        workers: int,
        loss: Loss,
        inner: Inner,
        config: SlowMoConfig | None,
        *,
        scaled: bool = True,
    ) -> None:
        if config is not None and (config.overlap_steps or config.fragments > 1):
            raise ValueError("virtual workers have neither overlap_steps nor fragments")
        self._model, self._loss, self._config, self._scaled = model, loss, config, scaled
        self._weights = {
            name: _stacked(value, workers).requires_grad_()
            for name, value in model.named_parameters()
        }
        self._statistics = {name: _stacked(value, workers) for name, value in model.named_buffers()}
        self._optimizer = inner(self._weights.values(), 0.0)
        self._anchor = [value.detach()[0].clone() for value in self._weights.values()]  # x_{t,0}
        self._momentum = [torch.zeros_like(value) for value in self._anchor]  # u_t
        self._rate = MeanLearningRate()
        self._schedule = None if config is None else Schedule(config)
        self._losses_of_all = vmap(self._loss_of_one, randomness="different")
        self.syncs = 0

    def step(self, batch: Batch, lr: float) -> Tensor:
        """One local step of each worker, and the sync if one is due.

        Args:
            batch: tensors of (workers, batch, ...).
            lr: γ.

        Returns:
            The loss of each worker before the step, (workers,).
        """
        self._model.train()
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad()
        losses: Tensor = self._losses_of_all(self._weights, self._statistics, batch)
        losses.sum().backward()
        if self._schedule is None:
            self._average_gradients()
        self._optimizer.step()
        if self._schedule is not None:
            self._rate.add(lr)
            due = self._schedule.tick()
            if due is not None:
                self._sync(due.kind)
        return losses.detach()

    def flush(self) -> None:
        """End the window early, as `DistributedOptimizer.flush` does."""
        if self._schedule is not None and self._rate.steps:
            self._sync(Sync.FLUSH)

    def mean(self) -> nn.Module:
        """A model with the workers' mean weights and running statistics."""
        model = copy.deepcopy(self._model)
        state = {
            name: value.detach().double().mean(0).to(value.dtype)
            for name, value in (self._weights | self._statistics).items()
        }
        model.load_state_dict(state)
        return model

    def _loss_of_one(
        self, weights: dict[str, Tensor], statistics: dict[str, Tensor], batch: Batch
    ) -> Tensor:
        def forward(*inputs: Tensor) -> Tensor:
            output: Tensor = functional_call(self._model, weights | statistics, inputs)
            return output

        return self._loss(forward, batch)

    def _average_gradients(self) -> None:
        for weight in self._weights.values():
            assert weight.grad is not None
            weight.grad.copy_(weight.grad.mean(0, keepdim=True).expand_as(weight.grad))
        self.syncs += 1

    @torch.no_grad()
    def _sync(self, kind: Sync) -> None:
        assert self._config is not None
        assert self._schedule is not None
        opens_window = not self._schedule.warming_up
        settings = settings_of(
            self._config, self._schedule, [0], outer=kind is not Sync.WARMUP, begins=opens_window
        )
        if settings.error is not None:
            raise settings.error
        gamma = self._rate.mean
        outer = settings.outer_step(0, gamma if self._scaled else 1.0)
        for weight, anchor, momentum in zip(
            self._weights.values(), self._anchor, self._momentum, strict=True
        ):
            displacement = anchor - weight.mean(0)
            anchor.sub_(outer.step * displacement + outer.carry * momentum)
            momentum.mul_(outer.decay).add_(outer.gain * displacement)
            weight.copy_(anchor.expand_as(weight))
        self._cross(opens_window)
        self._rate.clear()
        self._schedule.gammas[0] = abs(gamma)
        periods = {0: self._schedule.next_period(0)} if opens_window else None
        self._schedule.end(kind, [0], periods)
        self.syncs += 1

    def _cross(self, opens_window: bool) -> None:
        """Line 2 of Algorithm 1: what becomes of the inner optimizer's buffers."""
        assert self._config is not None
        if self._config.buffers == "reset" and opens_window:
            self._optimizer.state.clear()
        if self._config.buffers == "average":
            for state in self._optimizer.state.values():
                for value in state.values():
                    if isinstance(value, Tensor) and value.dim():  # a step count has none
                        value.copy_(value.mean(0, keepdim=True).expand_as(value))


def _stacked(value: Tensor, workers: int) -> Tensor:
    return value.detach().expand(workers, *value.shape).clone()
