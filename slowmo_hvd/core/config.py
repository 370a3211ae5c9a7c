"""The settings that a user can choose, and their legal values."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from slowmo_hvd.core.checks import (
    check_choice,
    check_flag,
    check_integer,
    check_number,
    check_positive,
)
from slowmo_hvd.core.schedules import QSR, describe

SyncPeriod: TypeAlias = int | Callable[[int], int] | QSR
OfWindow: TypeAlias = float | Callable[[int], float]
BUFFER_STRATEGIES = ("maintain", "reset", "average")
NONFINITE = ("exclude", "raise")


class OuterSettings(NamedTuple):
    """The settings of the outer step at a window's end.

    Attributes:
        slow_lr: α.
        slow_momentum: β.
        nesterov: whether the step has the Nesterov form.
    """

    slow_lr: float
    slow_momentum: float
    nesterov: bool


@dataclasses.dataclass(frozen=True)
class SlowMoConfig:
    """SlowMo's hyper-parameters, validated. The names are the field's, and the symbols the paper's.

    Args:
        sync_period: τ, the number of local steps between two averages; int >= 1. It can also be a
            `qsr`, or a callable that gets the number of local steps taken when a window begins and
            returns the τ of that window.
        slow_lr: α, the slow learning rate; finite number > 0. The paper uses 1 throughout. It can
            also be a callable of t, the number of windows that ended before the one that ends now.
        slow_momentum: β, the slow momentum; number with 0 <= β < 1. The paper uses 0.4 to 0.8, more
            for more workers. With 0 the algorithm is Local SGD. It can also be a callable of t.
        nesterov: whether to take the outer step in the Nesterov form of ``torch.optim.SGD``, as
            DiLoCo does.
        buffers: what happens to the inner optimizer's buffers when a window begins, line 2 of
            Algorithm 1: "maintain", "reset" or "average". The paper resets SGD's.
        warmup_steps: the number of steps at the start of training that are each followed by a plain
            average, before the windows begin (post-local SGD, arXiv 1808.07217); int >= 0.
        on_nonfinite: what a sync does with a worker whose displacement is not finite. "exclude"
            leaves it out of the average and gives it the others' model. "raise" raises an error on
            every worker.
        outlier_factor: k; number > 1, or None to exclude no outliers. A sync excludes each worker
            whose ‖d^i‖ is more than k times the workers' median, and treats it like one whose
            displacement is not finite.
        clip_displacement: φ; number > 0, or None for no clipping. If the averaged displacement
            divided by γ has a larger Euclidean norm than φ, over all parameters of a fragment, the
            outer step scales it down to φ, as in EDiT (arXiv 2412.07210). This norm has the size of
            a gradient's norm times τ. All sums are kept until the last one has arrived: one copy of
            the model.
        bucket_bytes: the number of bytes that a sync sends at once; int >= 8. A few buckets are in
            memory.
        overlap_steps: d, the number of local steps taken while an average is under way; int with
            0 <= d < τ. No step is lost. 0 is the paper's algorithm, in which training waits.
        fragments: F, the number of parts into which the parameters are divided; int with
            1 <= F <= τ. Each part has windows of τ steps, which end at other steps than the other
            parts' windows. With an overlap this is Streaming DiLoCo (arXiv 2501.18512), except that
            no step is lost.

    Raises:
        TypeError: an argument does not have the stated type.
        ValueError: an argument is out of the stated range.
    """

    sync_period: SyncPeriod = 12
    slow_lr: OfWindow = 1.0
    slow_momentum: OfWindow = 0.2
    nesterov: bool = False
    buffers: str = "maintain"
    warmup_steps: int = 0
    on_nonfinite: str = "exclude"
    bucket_bytes: int = 10 * 2**20
    overlap_steps: int = 0
    fragments: int = 1
    outlier_factor: float | None = None
    clip_displacement: float | None = None

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the dataclass is frozen; this stores the converted value
        set_field(self, "warmup_steps", check_integer("warmup_steps", self.warmup_steps, least=0))
        set_field(self, "bucket_bytes", check_integer("bucket_bytes", self.bucket_bytes, least=8))
        if not callable(self.slow_lr):
            set_field(self, "slow_lr", check_positive("slow_lr", self.slow_lr))
        if not callable(self.slow_momentum):
            beta = _check_slow_momentum("slow_momentum", self.slow_momentum)
            set_field(self, "slow_momentum", beta)
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
        if not self._has_periods:
            set_field(self, "sync_period", check_integer("sync_period", self.sync_period, least=1))
        if self.outlier_factor is not None:
            legal = "a finite number > 1, or None"
            factor = check_number("outlier_factor", self.outlier_factor, legal)
            if factor <= 1:
                raise ValueError(f"outlier_factor must be {legal}, got {factor}")
            set_field(self, "outlier_factor", factor)
        if self.clip_displacement is not None:
            legal = "a finite number > 0, or None"
            norm = check_positive("clip_displacement", self.clip_displacement, legal)
            set_field(self, "clip_displacement", norm)
        self._check_pace()

    def _check_pace(self) -> None:
        first = self.period(self.warmup_steps, 0.0)
        if self.fragments > first:
            raise ValueError(
                f"fragments={self.fragments} must be at most sync_period={first}: "
                "each fragment is synchronised once in a window, after a step of its own"
            )
        if self.overlap_steps and self.buffers == "average":
            raise ValueError(
                "buffers='average' cannot be used with overlap_steps: the buffers move on while "
                "their mean is under way; use 'maintain' or 'reset'"
            )

    @property
    def _has_periods(self) -> bool:
        return callable(self.sync_period) or self.by_learning_rate

    @property
    def varies(self) -> bool:
        """Whether any setting is computed anew for each window."""
        return self._has_periods or callable(self.slow_lr) or callable(self.slow_momentum)

    @property
    def by_learning_rate(self) -> bool:
        """Whether τ depends on γ, which the workers agree on in a sync."""
        return isinstance(self.sync_period, QSR)

    @property
    def has_momentum(self) -> bool:
        """Whether there is a u to keep, that is, whether β can be above 0."""
        return callable(self.slow_momentum) or self.slow_momentum > 0

    def period(self, step: int, learning_rate: float) -> int:
        """τ of the window that begins after ``step`` local steps.

        Args:
            step: the number of local steps.
            learning_rate: γ, as in `qsr`; the same on every rank, or 0 if there is none yet.

        Raises:
            TypeError, ValueError: the value that the user's callable returns cannot be a τ.
        """
        least = self.overlap_steps + 1
        if isinstance(self.sync_period, QSR):
            return self.sync_period.period(step, learning_rate, least)
        period, name = self.sync_period, "sync_period"
        if callable(period):
            name = f"sync_period({step})"
            period = check_integer(name, period(step), least=1)
        if period < least:
            raise ValueError(
                f"overlap_steps={self.overlap_steps} must be less than {name}={period}: "
                "an average lands before the next one is launched"
            )
        return period

    def outer_settings(self, window: int) -> OuterSettings:
        """α, β and the form of the outer step that ends a window.

        Args:
            window: t.

        Raises:
            TypeError, ValueError: the value that the user's callable returns is out of range.
        """
        alpha, beta = self.slow_lr, self.slow_momentum
        if callable(alpha):
            alpha = check_positive(f"slow_lr({window})", alpha(window))
        if callable(beta):
            beta = _check_slow_momentum(f"slow_momentum({window})", beta(window))
        return OuterSettings(alpha, beta, self.nesterov)

    def asdict(self) -> dict[str, Any]:
        """The configuration as builtins. A callable becomes a text that names it."""
        fields = dataclasses.fields(self)
        return {field.name: describe(getattr(self, field.name)) for field in fields}

    def arithmetic(self) -> dict[str, Any]:
        """The settings that a resumed run must share with the one that was saved, as builtins."""
        free = ("on_nonfinite", "bucket_bytes", "outlier_factor", "clip_displacement")
        return {name: value for name, value in self.asdict().items() if name not in free}


def _check_slow_momentum(name: str, value: Any) -> float:
    beta = check_number(name, value, f"a number with 0 <= {name} < 1")
    if not 0 <= beta < 1:
        raise ValueError(f"{name} must be a number with 0 <= {name} < 1, got {beta}")
    return beta
