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
        bucket_bytes: what a sync sends at once, in bytes; int >= 8. A few are in memory.
        overlap_steps: d, the local steps that go on while an average is under way, none of which
            is lost; int with 0 <= d < τ. 0 is the paper's algorithm, where training waits.
        fragments: F, the parts into which the parameters are dealt, each with windows of τ steps
            that end at other steps than the others'; int with 1 <= F <= τ. With an overlap this is
            Streaming DiLoCo (arXiv 2501.18512), but that no step is lost.

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
    bucket_bytes: int = 10 * 2**20
    overlap_steps: int = 0
    fragments: int = 1

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
        set_field(
            self, "overlap_steps", check_integer("overlap_steps", self.overlap_steps, least=0)
        )
        set_field(self, "fragments", check_integer("fragments", self.fragments, least=1))
        self._check_pace()

    def _check_pace(self) -> None:
        if self.overlap_steps >= self.sync_period:
            raise ValueError(
                f"overlap_steps={self.overlap_steps} must be less than "
                f"sync_period={self.sync_period}: an average lands before the next one is launched"
            )
        if self.fragments > self.sync_period:
            raise ValueError(
                f"fragments={self.fragments} must be at most sync_period={self.sync_period}: "
                "each fragment is synchronised once in a window, after a step of its own"
            )
        if self.overlap_steps and self.buffers == "average":
            raise ValueError(
                "buffers='average' cannot be used with overlap_steps: the buffers move on while "
                "their mean is under way; use 'maintain' or 'reset'"
            )

    def asdict(self) -> dict[str, Any]:
        """The configuration as builtins."""
        return dataclasses.asdict(self)

    def arithmetic(self) -> dict[str, Any]:
        """The settings that a resumed run must share with the one that was saved, as builtins."""
        free = ("on_nonfinite", "bucket_bytes")
        return {name: value for name, value in self.asdict().items() if name not in free}
