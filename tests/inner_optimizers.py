"""Every optimizer that the suite trains with inside SlowMo."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import schedulefree
import torch
from lion_pytorch import Lion
from models import Bag, Linear
from prodigyopt import Prodigy
from torch import Tensor, nn
from transformers.optimization import Adafactor


class SignMomentum(torch.optim.Optimizer):
    """An optimizer as a user writes one: a float buffer, and an integer count of its own."""

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                state.setdefault("velocity", torch.zeros_like(param)).lerp_(param.grad, 0.3)
                state["calls"] = state.get("calls", 0) + 1
                rate = group["lr"] / max(state["calls"], 1) ** 0.5
                param.sub_(state["velocity"].sign(), alpha=rate)
        return loss


ALL = ("reset", "maintain", "average")


@dataclass(frozen=True)
class Inner:
    """How to make one optimizer, and what it needs."""

    make: Callable[[Iterable[Tensor]], torch.optim.Optimizer]
    model: Callable[[torch.dtype], nn.Module] = Linear
    closure: bool = False  # step() needs one
    strategies: tuple[str, ...] = ALL
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)

    @property
    def strategy(self) -> str:
        """The default of `DistributedOptimizer`, or what it must be given."""
        return "maintain" if "maintain" in self.strategies else "reset"


def _of(optimizer: type[torch.optim.Optimizer], **options: Any) -> Inner:
    return Inner(lambda params: optimizer(params, **options))


def _schedule_free(name: str, *strategies: str, **options: Any) -> Inner:
    def make(params: Iterable[Tensor]) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = getattr(schedulefree, name)(list(params), **options)
        if hasattr(optimizer, "train"):
            optimizer.train()
        return optimizer

    return Inner(make, closure="Closure" in name, strategies=strategies, dtypes=(torch.float32,))


INNER = {
    "ASGD": _of(torch.optim.ASGD, lr=0.1),
    "Adadelta": _of(torch.optim.Adadelta, lr=1.0),
    "Adafactor": _of(torch.optim.Adafactor, lr=0.05),
    "Adagrad": _of(torch.optim.Adagrad, lr=0.1, initial_accumulator_value=0.1),
    "Adam": _of(torch.optim.Adam, lr=0.05, amsgrad=True),
    "AdamW": _of(torch.optim.AdamW, lr=0.05),
    "Adamax": _of(torch.optim.Adamax, lr=0.05),
    # Needs a closure. Its history pairs gradients with steps, which an outer step breaks.
    "LBFGS": Inner(
        lambda params: torch.optim.LBFGS(params, lr=0.2, max_iter=3),
        closure=True,
        strategies=("reset",),
    ),
    "Muon": _of(torch.optim.Muon, lr=0.05),  # matrices only, which is what the model has
    "NAdam": _of(torch.optim.NAdam, lr=0.05),
    "RAdam": _of(torch.optim.RAdam, lr=0.05),
    "RMSprop": _of(torch.optim.RMSprop, lr=0.02, momentum=0.9, centered=True),
    "Rprop": _of(torch.optim.Rprop, lr=0.02),
    "SGD": _of(torch.optim.SGD, lr=0.2, momentum=0.9, nesterov=True, weight_decay=0.01),
    # Takes sparse gradients only, so it gets a model that has no others.
    "SparseAdam": Inner(lambda params: torch.optim.SparseAdam(list(params), lr=0.05), model=Bag),
    # Its moments are float32 for bfloat16 parameters too, and torch's loading rounds them.
    "Adafactor of transformers": Inner(
        lambda params: Adafactor(
            params, lr=0.05, beta1=0.9, scale_parameter=False, relative_step=False
        ),
        dtypes=(torch.float32,),
    ),
    "lion-pytorch": Inner(lambda params: Lion(params, lr=0.01)),
    "prodigyopt": Inner(
        lambda params: Prodigy(params, d0=0.01), strategies=("maintain",), dtypes=(torch.float32,)
    ),
    "schedulefree's SGD": _schedule_free("SGDScheduleFree", *ALL, lr=0.5),
    "schedulefree's AdamW": _schedule_free("AdamWScheduleFree", *ALL, lr=0.1, weight_decay=0.01),
    "schedulefree's RAdam": _schedule_free(
        "RAdamScheduleFree", "maintain", lr=0.1, silent_sgd_phase=False
    ),
    # These two differ in what they keep: x in the parameters between steps; x, y and z as copies.
    "schedulefree's with a closure": _schedule_free("SGDScheduleFreeClosure", "maintain", lr=0.5),
    "schedulefree's reference": _schedule_free("SGDScheduleFreeReference", "maintain", lr=0.5),
    "the user's own": Inner(lambda params: SignMomentum(params)),
}

#: Classes of torch.optim that train nothing.
ABSTRACT = {"Optimizer"}


def classes_in_torch() -> set[str]:
    """The names of the classes that ``torch.optim`` exports."""
    return {name for name, value in vars(torch.optim).items() if inspect.isclass(value)}
