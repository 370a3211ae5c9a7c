"""What all contenders in PyTorch share: one thread, one model, one inner optimizer, one step."""

from typing import Any

import torch

from benchmarks.contenders.protocol import Batch, Setting, Work


def model_of(work: Work, setting: Setting) -> torch.nn.Module:
    """The model, with the same first weights on every rank."""
    torch.set_num_threads(1)
    torch.manual_seed(setting.seed)
    model: torch.nn.Module = work.torch_model()
    return model


def inner_of(work: Work, setting: Setting, model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW or SGD with momentum; plain SGD where nothing is learnt."""
    if work.adaptive:
        return torch.optim.AdamW(model.parameters(), lr=setting.lr, weight_decay=0.01)
    if not work.held_out():
        return torch.optim.SGD(model.parameters(), lr=setting.lr)
    return torch.optim.SGD(model.parameters(), lr=setting.lr, momentum=0.9, nesterov=True)


class TorchTrainer:
    """Trains a model with an optimizer; by itself this sends nothing.

    Args:
        work: what is trained.
        model: the network itself, which is tested.
        optimizer: whose step a training step ends with.
        period: see Contender.
        through: what the batches go through, where that is something around the model.
    """

    def __init__(
        self, work: Work, model: torch.nn.Module, optimizer: Any, period: int, through: Any = None
    ) -> None:
        self.period = period
        self._work = work
        self._model = model
        self._optimizer = optimizer
        self._through = model if through is None else through

    def step(self, batch: Batch) -> None:
        """One step of the optimizer."""
        self._optimizer.zero_grad()
        self._work.torch_loss(self._through, batch).backward()
        self._optimizer.step()

    def finish(self) -> None:
        """Nothing to do."""

    @torch.no_grad()
    def loss(self, batch: Batch) -> float:
        """The model's."""
        return float(self._work.torch_loss(self._model, batch))

    def sync_seconds(self) -> list[float]:
        """There is no record."""
        return []

    def raw_allreduce(self) -> bool:
        """There is none."""
        return False

    def average(self, allreduce: Any, ranks: int) -> None:
        """Put the workers' mean into the model, by a function that sums a tensor in place."""
        for param in self._model.parameters():
            allreduce(param.data)
            param.data.div_(ranks)
