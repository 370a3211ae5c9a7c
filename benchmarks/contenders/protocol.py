"""What a contender, the work it does and its setting look like; nothing here needs a framework."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

Batch = tuple[np.ndarray, np.ndarray]


class CannotRunError(RuntimeError):
    """A contender that this machine cannot run, and why."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a rank is told.

    Attributes:
        rank: its number.
        ranks: how many there are.
        period: τ, the local steps between two averages of those contenders that have such.
        lr: the learning rate.
        seed: of the first weights and of the batches.
        address: where rank 0 can be reached.
    """

    rank: int
    ranks: int
    period: int
    lr: float
    seed: int
    address: str


class Work(Protocol):
    """A model and its batches.

    Attributes:
        name: as on the command line.
        parameters: how many, about.
        lr: the middle of the grid of learning rates.
        target: the loss whose time is taken.
        batch_size: samples of one worker's step.
        adaptive: whether it is trained with AdamW, and not with SGD.
    """

    name: str
    parameters: int
    lr: float
    target: float
    batch_size: int
    adaptive: bool

    def batch(self, setting: Setting, step: int) -> Batch:
        """What a rank trains on in a step."""

    def held_out(self) -> Sequence[Batch]:
        """What all ranks are tested on."""

    def torch_model(self) -> Any:
        """The model in PyTorch."""

    def torch_loss(self, model: Any, batch: Batch) -> Any:
        """Its mean loss, as a tensor."""

    def keras_model(self) -> Any:
        """The model in Keras."""

    def keras_loss(self, model: Any, x: Any, y: Any) -> Any:
        """Its mean loss, as a tensor."""


class Contender(Protocol):
    """One way to train on several workers.

    Attributes:
        period: steps from one exchange between the workers to the next; 0 if there is none.
    """

    period: int

    def step(self, batch: Batch) -> None:
        """Train on one batch, and exchange with the others whenever it is time."""

    def finish(self) -> None:
        """End the training: afterwards all workers hold one model, if they ever do."""

    def loss(self, batch: Batch) -> float:
        """The loss of this worker's model."""

    def sync_seconds(self) -> list[float]:
        """The seconds of each sync so far, by the contender's own record; empty without one."""

    def raw_allreduce(self) -> bool:
        """Average as many bytes as the model has, in place and raw; False if it has no way to."""
