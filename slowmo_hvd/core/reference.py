"""Algorithm 1 of the SlowMo paper in NumPy, for m virtual workers in one process.

J. Wang, V. Tantia, N. Ballas, M. Rabbat, "SlowMo: Improving Communication-Efficient Distributed SGD
with Slow Momentum", ICLR 2020, arXiv 1910.00643. Line numbers are those of its Algorithm 1.

It is written in float64, to be read beside the paper. The adapters are tested against it. It shares
the names of the configuration with them, and no arithmetic:

    def gradient(worker, step, x):
        return [x[0] - targets[worker]]                 # one array for each parameter group

    config = SlowMoConfig(sync_period=4, slow_momentum=0.5)
    for state in slowmo([np.zeros(3)], gradient, lambda step: [0.1], SGD(), config, 2, steps=20):
        print(state.x[0])                               # worker 0 after each of its steps

A parameter group is one array here. No array is changed in place.
"""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.schedules import QSR

Array: TypeAlias = npt.NDArray[np.float64]
Gradient: TypeAlias = Callable[[int, int, list[Array]], Sequence[npt.ArrayLike]]
LearningRate: TypeAlias = Callable[[int], Sequence[float]]
Samples: TypeAlias = Callable[[int, int], int]


class Base(Protocol):
    """A base optimizer, for one worker and one parameter group.

    Attributes:
        buffers: h, everything that the base optimizer remembers except its step count; empty at
            first.
    """

    buffers: list[Array]

    def step(self, x: Array, gradient: Array, lr: float) -> Array:
        """Line 4, x_{t,k+1} = x_{t,k} - γ d_{t,k}."""

    def reset(self) -> None:
        """Forget everything, as before the first step."""


@dataclasses.dataclass
class SGD:
    """Stochastic gradient descent with momentum, without dampening.

    h ← μ h + g with d = h, or d = g + μ h in the Nesterov form: Sutskever, Martens, Dahl, Hinton,
    "On the importance of initialization and momentum in deep learning", ICML 2013, equations 1
    to 4. The learning rate is not part of h, as in torch.optim.SGD. Weight decay is the gradient of
    λ‖x‖²/2.
    """

    momentum: float = 0.0  #: μ
    nesterov: bool = False
    weight_decay: float = 0.0  #: λ
    buffers: list[Array] = dataclasses.field(default_factory=list)

    def step(self, x: Array, gradient: Array, lr: float) -> Array:
        """Line 4."""
        g = gradient + self.weight_decay * x
        h = self.buffers[0] if self.buffers else np.zeros_like(x)
        h = self.momentum * h + g
        self.buffers = [h]
        d = g + self.momentum * h if self.nesterov else h
        return x - lr * d

    def reset(self) -> None:
        """Forget the momentum."""
        self.buffers = []


@dataclasses.dataclass
class Adam:
    """Adam and, with decoupled weight decay, AdamW.

    D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, arXiv 1412.6980,
    Algorithm 1; I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, arXiv
    1711.05101, Algorithm 2. Line 6 of the latter adds the decay to the gradient (Adam), and line 12
    to the step (AdamW), where it is proportional to the learning rate, as in torch.optim.AdamW.
    """

    betas: tuple[float, float] = (0.9, 0.999)  #: β₁ and β₂, unrelated to the slow momentum β
    eps: float = 1e-8
    weight_decay: float = 0.0  #: λ
    decoupled: bool = False
    buffers: list[Array] = dataclasses.field(default_factory=list)
    steps: int = 0  #: the exponent of the bias correction; not averaged, but reset

    def step(self, x: Array, gradient: Array, lr: float) -> Array:
        """Line 4."""
        beta1, beta2 = self.betas
        g = gradient if self.decoupled else gradient + self.weight_decay * x
        m, v = self.buffers or (np.zeros_like(x), np.zeros_like(x))
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        self.buffers = [m, v]
        self.steps += 1
        m_hat = m / (1 - beta1**self.steps)
        v_hat = v / (1 - beta2**self.steps)
        d = m_hat / (np.sqrt(v_hat) + self.eps)
        if self.decoupled:
            d = d + self.weight_decay * x
        return x - lr * d

    def reset(self) -> None:
        """Forget the moments and the step count. With the old count they would be biased to 0."""
        self.buffers = []
        self.steps = 0


@dataclasses.dataclass(frozen=True)
class State:
    """The workers' state after a local step, and after the sync if one was due.

    Attributes:
        step: the number of local steps taken.
        windows: t of each fragment, the number of outer steps taken.
        x: ``x[i][g]`` is x^i, group g of worker i.
        anchor: ``anchor[g]`` is x_{t,0}.
        momentum: ``momentum[g]`` is u_t.
    """

    step: int
    windows: list[int]
    x: list[list[Array]]
    anchor: list[Array]
    momentum: list[Array]


def slowmo(
    x0: Sequence[npt.ArrayLike],
    gradient: Gradient,
    lr: LearningRate,
    base: Base,
    config: SlowMoConfig,
    workers: int,
    *,
    steps: int,
    flush_after: Collection[int] = (),
    fragment_of: Sequence[int] | None = None,
    samples: Samples | None = None,
) -> Iterator[State]:
    """Run Algorithm 1 and yield the state after every local step.

    With an overlap of d steps, the outer step is taken when the window ends, but each worker goes
    on from where it is. d steps later it moves by as much as the outer step would have moved it
    then, x^i ← x_{t+1,0} + (x^i - x^i_{t,τ}). The next window begins where this one ends, so the
    steps taken in between count in it.

    Args:
        x0: x_{0,0}, one array for each parameter group.
        gradient: ``gradient(worker, step, x)`` returns the gradient of each group of x; step counts
            from 0.
        lr: ``lr(step)`` returns γ of each group in that step.
        base: a new base optimizer; each worker gets a copy for each group.
        config: τ, α, β and the other settings.
        workers: m.
        steps: the number of local steps that each worker takes.
        flush_after: the steps, counted from 1, after which the window ends early.
        fragment_of: the fragment of each group; if None, all groups are in the first one. The
            windows of fragment f of F end (f + 1) τ / F steps, rounded down, after the warm-up or
            the last flush, and then every τ steps.
        samples: ``samples(worker, step)`` returns the number of samples by which the workers' means
            are weighted; if None, the means are plain.
    """
    groups, ranks, fragments = range(len(x0)), range(workers), range(config.fragments)
    inside = [
        [j for j in groups if (fragment_of or [0] * len(x0))[j] == fragment]
        for fragment in fragments
    ]
    d = config.overlap_steps
    anchor = [np.array(value, dtype=np.float64) for value in x0]  # the same on every worker
    u = [np.zeros_like(value) for value in anchor]  # u_0 = 0
    x = [list(anchor) for _ in ranks]
    ended_at = [list(anchor) for _ in ranks]  # x^i_{t,τ} of the windows that ended last
    bases = [[copy.deepcopy(base) for _ in groups] for _ in ranks]
    agreed = [0.0] * len(fragments)  # γ of the last average that has landed, for the QSR
    on_its_way = list(agreed)
    tau = [sync_period(config, config.warmup_steps, gamma) for gamma in agreed]
    left = first_left(tau)  # steps until each fragment's window ends
    windows, lands = [0] * len(fragments), [0] * len(fragments)
    rates: list[list[Sequence[float]]] = [[] for _ in fragments]  # each window's so far
    counted = [[0] * workers for _ in fragments]  # n of each worker in each window so far

    def average(fragment: int, now: int) -> None:
        n = counted[fragment] if samples else [1] * workers
        means = [mean([x[i][j] for i in ranks], n) for j in groups]  # line 6: the one ALLREDUCE
        gammas = [sum(rate[j] for rate in rates[fragment]) / len(rates[fragment]) for j in groups]
        on_its_way[fragment] = max(map(abs, gammas))
        if config.clip_displacement is not None and now > config.warmup_steps:
            means = clipped(means, anchor, gammas, inside[fragment], config.clip_displacement)
        for j in inside[fragment]:
            x_bar, gamma = means[j], gammas[j]  # x_{t,τ}, γ_t
            if now <= config.warmup_steps:
                # Post-local SGD: T. Lin, S. U. Stich, K. K. Patel, M. Jaggi, "Don't Use Large
                # Mini-Batches, Use Local SGD", ICLR 2020, arXiv 1808.07217, section 3: up to a
                # given step the workers average after every step. No window is open, u stays.
                anchor[j] = x_bar
            else:
                anchor[j], u[j] = outer_step(
                    anchor[j], x_bar, u[j], gamma, config, windows[fragment]
                )
            for i in ranks:
                ended_at[i][j] = x[i][j]
            # Line 2. Buffers are reset only when a window begins, which does not happen between the
            # warm-up's steps. They are averaged in every sync.
            if config.buffers == "reset" and now >= config.warmup_steps:
                for i in ranks:
                    bases[i][j].reset()
            if config.buffers == "average":
                average_buffers([bases[i][j] for i in ranks])
        rates[fragment], counted[fragment] = [], [0] * workers
        if now > config.warmup_steps:
            windows[fragment] += 1

    def land(fragment: int) -> None:
        for i, j in itertools.product(ranks, inside[fragment]):
            x[i][j] = anchor[j] + (x[i][j] - ended_at[i][j])
        lands[fragment] = 0
        agreed[fragment] = on_its_way[fragment]

    for now in range(1, steps + 1):
        lrs = lr(now - 1)
        for of_window in rates:
            of_window.append(lrs)
        for i in ranks:  # line 4, on every worker at once
            for of_fragment in counted:
                of_fragment[i] += samples(i, now - 1) if samples else 0
            g = gradient(i, now - 1, x[i])
            x[i] = [
                bases[i][j].step(x[i][j], np.asarray(g[j], dtype=np.float64), lrs[j])
                for j in groups
            ]

        warming_up = now <= config.warmup_steps
        left = left if warming_up else [steps_left - 1 for steps_left in left]
        for fragment in fragments:
            if lands[fragment] == now:
                land(fragment)
        for fragment in fragments:
            if warming_up or left[fragment] == 0:
                average(fragment, now)
                lands[fragment] = now + d
                if warming_up or d == 0:
                    land(fragment)
                if now >= config.warmup_steps:  # a window begins
                    tau[fragment] = sync_period(config, now, agreed[fragment])
                    left[fragment] = first_left(tau)[fragment] if warming_up else tau[fragment]
        if now in flush_after and not warming_up:
            for fragment in fragments:
                if lands[fragment]:
                    land(fragment)
            if any(rates):
                for fragment in fragments:
                    if rates[fragment]:
                        average(fragment, now)
                        land(fragment)
                        tau[fragment] = sync_period(config, now, agreed[fragment])
                left = first_left(tau)
        yield copy.deepcopy(State(now, windows, x, anchor, u))


def first_left(tau: Sequence[int]) -> list[int]:
    """The number of steps until each fragment's first window ends, one after the other."""
    return [(fragment + 1) * steps // len(tau) for fragment, steps in enumerate(tau)]


def sync_period(config: SlowMoConfig, steps: int, gamma: float) -> int:
    """τ of a window that begins after ``steps`` local steps.

    It is a number, a function of the steps, or given by the quadratic synchronization rule: X. Gu,
    K. Lyu, S. Arora, J. Zhang, L. Huang, ICLR 2024, arXiv 2310.14423, section 3. With that rule, no
    window is longer than all steps before it, and the last one is cut off where the training ends.

    Args:
        config: has τ and d.
        steps: the number of local steps taken.
        gamma: the mean learning rate of the last window whose average has landed; 0 at first.
    """
    tau = config.sync_period
    if not isinstance(tau, QSR):
        return tau(steps) if callable(tau) else tau
    period = float(tau.base)
    if gamma > 0 and steps >= tau.warmup_steps:
        period = max(period, min((tau.coefficient / gamma) ** tau.power, steps))
    if tau.total_steps is not None and steps < tau.total_steps:
        period = min(period, tau.total_steps - steps)
    return max(int(period), config.overlap_steps + 1)


def outer_step(
    x0: Array, x_bar: Array, u: Array, gamma: float, config: SlowMoConfig, window: int
) -> tuple[Array, Array]:
    """Lines 7 and 8: x_{t+1,0} and u_{t+1} of one group.

    The paper has one γ_t in a window. If the learning rate changes inside the window, γ_t here is
    its mean over the window, which can be 0. Then there is nothing to divide by: u stays as it is,
    and x takes the displacement as line 8 would with β = 0.

    Args:
        x0: x_{t,0}.
        x_bar: x_{t,τ}, the workers' mean.
        u: u_t.
        gamma: γ_t.
        config: has α, β and the form of the step.
        window: t; α and β can be functions of it.
    """
    alpha = config.slow_lr(window) if callable(config.slow_lr) else config.slow_lr
    slow_momentum = config.slow_momentum
    beta = slow_momentum(window) if callable(slow_momentum) else slow_momentum
    if gamma == 0:
        return x0 - alpha * (x0 - x_bar), u
    g = (x0 - x_bar) / gamma
    u = beta * u + g  # line 7
    # Nesterov's form is not in this paper. It is DiLoCo's outer step, on g as on a gradient:
    # A. Douillard et al., arXiv 2311.08105, Algorithm 1, with the step of torch.optim.SGD.
    d = g + beta * u if config.nesterov else u
    return x0 - alpha * gamma * d, u  # line 8


def clipped(
    means: Sequence[Array],
    anchor: Sequence[Array],
    gammas: Sequence[float],
    inside: Sequence[int],
    limit: float,
) -> list[Array]:
    """The means, moved towards the anchor so that ‖(x_{t,0} - x̄)/γ‖ is within the limit.

    Q. Cheng et al., "EDiT: A Local-SGD-Based Efficient Distributed Training Method for Large
    Language Models", ICLR 2025, arXiv 2412.07210, section 3.2, the clip of the pseudo-gradient.
    """
    squares = [((anchor[j] - means[j]) ** 2).sum() / gammas[j] ** 2 for j in inside if gammas[j]]
    norm = math.sqrt(sum(squares))
    factor = min(1.0, limit / norm) if norm else 1.0
    return [a + factor * (x_bar - a) for a, x_bar in zip(anchor, means, strict=True)]


def average_buffers(bases: Sequence[Base]) -> None:
    """Give all base optimizers the mean of their buffers. The step count is not a buffer."""
    means = [mean(of_all) for of_all in zip(*(base.buffers for base in bases), strict=True)]
    for base in bases:
        base.buffers = list(means)


def mean(values: Sequence[Array], n: Sequence[int] | None = None) -> Array:
    """(1/m) Σ_i x^i, or Σ_i n_i x^i / Σ_i n_i."""
    n = n or [1] * len(values)
    total = np.zeros_like(values[0])
    for value, weight in zip(values, n, strict=True):
        total = total + weight * value
    return total / sum(n)
