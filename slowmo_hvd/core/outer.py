"""The slow momentum step as four numbers per parameter group."""

from collections.abc import Callable
from typing import Any, NamedTuple

from slowmo_hvd.core.config import OuterSettings

#: If |γ| is below float32's smallest normal number, neither 1/γ nor γ·d fits a float32 any more.
SMALLEST_GAMMA = 2.0**-126


def is_usable(gamma: Any) -> Any:
    """Whether γ is large enough to divide by."""
    return abs(gamma) >= SMALLEST_GAMMA


class OuterStep(NamedTuple):
    """One outer step, as every adapter applies it to its tensors.

    ::

        x_{t+1,0} = x_{t,0} - step * d̄ - carry * u_t
        u_{t+1}   = decay * u_t + gain * d̄          (after x, from the same u_t)

    where d̄ = x_{t,0} - mean_i x^i_{t,τ} is the averaged displacement.
    """

    step: Any
    carry: Any
    decay: Any
    gain: Any

    def clipped(self, factor: float) -> "OuterStep":
        """The step from d̄ multiplied by a factor."""
        return self._replace(step=self.step * factor, gain=self.gain * factor)


#: The workers' mean, without a change of the slow momentum: a step of the warm-up.
PLAIN_AVERAGE = OuterStep(step=1.0, carry=0.0, decay=1.0, gain=0.0)


def _either(condition: bool, yes: float, no: float) -> float:
    return yes if condition else no


def outer_step(
    settings: OuterSettings, gamma: Any, where: Callable[[Any, Any, Any], Any] = _either
) -> OuterStep:
    """The coefficients of Algorithm 1, lines 7 and 8 (arXiv 1910.00643), for one group.

    The paper's lines::

        u_{t+1} = β u_t + d̄ / γ
        x_{t+1,0} = x_{t,0} - α γ u_{t+1}

    are the same as ``x_{t,0} - α (d̄ + β γ u_t)``, which needs no division. In torch.optim.SGD's
    Nesterov form the step is ``x_{t,0} - α γ (d̄/γ + β u_{t+1})``, that is
    ``x_{t,0} - α ((1 + β) d̄ + β² γ u_t)``.

    Args:
        settings: α, β and the form of the step.
        gamma: γ_t, the window's mean learning rate, a float or a tensor without dimensions. At 0
            there is nothing to divide by: u keeps its value, and x takes the displacement (then
            usually zero), so no progress is lost. A negative γ_t, which maximises, works as well.
        where: ``where(condition, yes, no)`` for the type of ``gamma``.
    """
    alpha, beta, nesterov = settings
    usable = is_usable(gamma)
    if nesterov:
        step, carry = alpha * (1 + beta), alpha * beta**2 * gamma
    else:
        step, carry = alpha, alpha * beta * gamma
    return OuterStep(
        step=where(usable, step, alpha),
        carry=where(usable, carry, 0.0),
        decay=where(usable, beta, 1.0),
        gain=where(usable, 1 / where(usable, gamma, 1.0), 0.0),
    )
