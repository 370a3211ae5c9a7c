"""What a user can set, and which values are legal."""

import dataclasses
from typing import Any

from slowmo_hvd.core.checks import check_choice, check_flag, check_integer, check_number

BUFFER_STRATEGIES = ("auto", "reset", "maintain", "average")
NONFINITE = ("exclude", "raise")


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
        on_nonfinite: what a sync does with a worker whose displacement is not finite: "exclude"
            it from the average and give it the others' model, or "raise" on every worker.
        bucket_bytes: what a sync sends at once, in bytes; int >= 8. Two such buckets are in memory.

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
    on_nonfinite: str = "exclude"
    bucket_bytes: int = 32 * 2**20

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the dataclass is frozen; this stores the normal type
        set_field(self, "sync_period", check_integer("sync_period", self.sync_period, least=1))
        set_field(self, "warmup_steps", check_integer("warmup_steps", self.warmup_steps, least=0))
        set_field(self, "bucket_bytes", check_integer("bucket_bytes", self.bucket_bytes, least=8))
        set_field(self, "slow_lr", check_number("slow_lr", self.slow_lr, "a finite number > 0"))
        set_field(
            self,
            "slow_momentum",
            check_number(
                "slow_momentum", self.slow_momentum, "a number with 0 <= slow_momentum < 1"
            ),
        )
        if self.slow_lr <= 0:
            raise ValueError(f"slow_lr must be a finite number > 0, got {self.slow_lr}")
        if not 0 <= self.slow_momentum < 1:
            raise ValueError(
                "slow_momentum must be a number with 0 <= slow_momentum < 1, "
                f"got {self.slow_momentum}"
            )
        check_flag("nesterov", self.nesterov)
        if self.nesterov and self.slow_momentum == 0:
            raise ValueError(
                "nesterov=True needs slow_momentum > 0, got 0.0: there is no momentum to look "
                "ahead with"
            )
        check_choice("buffers", self.buffers, BUFFER_STRATEGIES)
        check_choice("on_nonfinite", self.on_nonfinite, NONFINITE)

    def asdict(self) -> dict[str, Any]:
        """The configuration as builtins."""
        return dataclasses.asdict(self)

    def arithmetic(self) -> dict[str, Any]:
        """The settings that a resumed run must share with the one that was saved, as builtins."""
        free = ("on_nonfinite", "bucket_bytes")
        return {name: value for name, value in self.asdict().items() if name not in free}
