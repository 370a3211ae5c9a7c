"""What a training is: its task, its method and their numbers."""

import dataclasses
from typing import Any

from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.schedules import linear, qsr

METHODS = ("averaging", "slowmo", "post-local", "bmuf", "diloco", "snoo", "qsr")
DILOCO_RATE, DILOCO_MOMENTUM = 0.7, 0.9  #: α and β of the outer step of DiLoCo, and of SNOO here
QSR_COEFFICIENT = 0.25  #: c over the peak learning rate, as 0.2 over 0.8 in the paper of QSR


@dataclasses.dataclass(frozen=True)
class Setting:
    """A method on a task, but for the learning rate and the seed.

    Attributes:
        task: its name.
        method: one of `METHODS`.
        workers: m.
        sync_period: τ; of QSR the shortest; 1 for gradient averaging.
        slow_momentum: β.
        buffers: the strategy.
        batch_factor: a step's examples over the task's. A lone worker with the factor m takes as
            many as m workers.
        momentum_warmup: windows over which β rises from 0.
    """

    task: str
    method: str = "slowmo"
    workers: int = 16
    sync_period: int = 12
    slow_momentum: float = 0.0
    buffers: str = "maintain"
    batch_factor: int = 1
    momentum_warmup: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"there is no method {self.method!r}: {', '.join(METHODS)}")

    @property
    def scaled(self) -> bool:
        """Whether u is divided by γ, as in Algorithm 1."""
        return self.method != "bmuf"

    def config(self, lr: float, steps: int) -> SlowMoConfig | None:
        """What `DistributedOptimizer` is given; None for gradient averaging.

        Args:
            lr: the peak learning rate.
            steps: local steps of the whole training.
        """
        if self.method == "averaging":
            return None
        special: dict[str, Any] = {
            "post-local": {"warmup_steps": steps // 2},
            "diloco": {"nesterov": True, "slow_lr": DILOCO_RATE},
            "snoo": {"nesterov": True, "slow_lr": DILOCO_RATE},
            "qsr": {
                "sync_period": qsr(
                    self.sync_period,
                    QSR_COEFFICIENT * lr,
                    total_steps=steps,
                    warmup_steps=steps // 10,  # all tasks have reached the peak by then
                )
            },
        }
        general = {
            "sync_period": self.sync_period,
            "slow_momentum": (
                linear(0.0, self.slow_momentum, self.momentum_warmup)
                if self.momentum_warmup
                else self.slow_momentum
            ),
            "buffers": self.buffers,
        }
        return SlowMoConfig(**(general | special.get(self.method, {})))


@dataclasses.dataclass(frozen=True)
class Run:
    """One training."""

    setting: Setting
    lr: float
    seed: int
