"""What a user can set, and which values are legal."""

import dataclasses
import math
import numbers
from typing import Any

BUFFER_STRATEGIES = ("auto", "reset", "maintain", "average")


@dataclasses.dataclass(frozen=True)
class SlowMoConfig:
    """SlowMo's hyper-parameters, validated. Names are the field's, symbols the paper's.

    Args:
        sync_period: τ, the local steps between two averages; int >= 1.
        slow_lr: α, the slow learning rate; finite number > 0. The paper uses 1 throughout.
        slow_momentum: β, the slow momentum; number with 0 <= β < 1. The paper uses 0.4 to 0.8,
            more for more workers; 0 gives Local SGD.
        nesterov: take the outer step in the Nesterov form of ``torch.optim.SGD`` (DiLoCo's).
        buffers: what happens to the inner optimizer's buffers where a window begins, line 2 of
            Algorithm 1: "reset", "maintain", "average", or "auto", which resets for SGD and
            maintains for Adam and its relatives, as the paper does.
        warmup_steps: the number of first steps that are each followed by a plain average,
            before the windows begin (post-local SGD, arXiv 1808.07217); int >= 0.

    Raises:
        TypeError: an argument is not of the stated type.
        ValueError: an argument is out of the stated range.
    """

    sync_period: int = 12
    slow_lr: float = 1.0
    slow_momentum: float = 0.5
    nesterov: bool = False
    buffers: str = "auto"
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the dataclass is frozen; this stores the normal type
        set_field(self, "sync_period", _integer("sync_period", self.sync_period, least=1))
        set_field(self, "warmup_steps", _integer("warmup_steps", self.warmup_steps, least=0))
        set_field(self, "slow_lr", _number("slow_lr", self.slow_lr, "a finite number > 0"))
        set_field(
            self,
            "slow_momentum",
            _number("slow_momentum", self.slow_momentum, "a number with 0 <= slow_momentum < 1"),
        )
        if self.slow_lr <= 0:
            raise ValueError(f"slow_lr must be a finite number > 0, got {self.slow_lr}")
        if not 0 <= self.slow_momentum < 1:
            raise ValueError(
                "slow_momentum must be a number with 0 <= slow_momentum < 1, "
                f"got {self.slow_momentum}"
            )
        if not isinstance(self.nesterov, bool):
            raise TypeError(f"nesterov must be True or False, got {self.nesterov!r}")
        if self.nesterov and self.slow_momentum == 0:
            raise ValueError(
                "nesterov=True needs slow_momentum > 0, got 0.0: there is no momentum to look "
                "ahead with"
            )
        if not isinstance(self.buffers, str):
            raise TypeError(f"buffers must be one of {_choices()}, got {self.buffers!r}")
        if self.buffers not in BUFFER_STRATEGIES:
            raise ValueError(f"buffers must be one of {_choices()}, got {self.buffers!r}")

    def asdict(self) -> dict[str, Any]:
        """The configuration as builtins, for a checkpoint."""
        return dataclasses.asdict(self)


def _choices() -> str:
    return ", ".join(repr(name) for name in BUFFER_STRATEGIES)


def _integer(name: str, value: Any, least: int) -> int:
    # bool is an int to Python, but sync_period=True is a slip, not a one.
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int >= {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be an int >= {least}, got {value}")
    return int(value)


def _number(name: str, value: Any, legal: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {legal}, got {value!r}")
    try:
        number = float(value)
    except OverflowError:  # an int beyond all floats
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be {legal}, got {number}")
    return number
