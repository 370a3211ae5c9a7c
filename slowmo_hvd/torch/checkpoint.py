"""The slow state of a torch optimizer as it is saved, in the form of `slowmo_hvd.core.state`."""

import math
from typing import Any

import torch
from torch import Tensor

from slowmo_hvd.core.schedule import MeanLearningRate
from slowmo_hvd.core.state import check_state, migrated, pack_inner, pack_state, unpack_counters
from slowmo_hvd.torch.inner_state import tensor_form
from slowmo_hvd.torch.parameters import Parameters, parameters_of
from slowmo_hvd.torch.rooms import real, slow_dtype
from slowmo_hvd.torch.training import Training


def slow_state(training: Training, inner: Any) -> dict[str, Any]:
    """Everything that is to be saved; the tensors are not copies.

    Args:
        training: the training whose state is saved.
        inner: the inner optimizer's state_dict, whose form is saved.

    Raises:
        RuntimeError: a sync failed partway, so the state is not that of any step.
    """
    engine, known = training.engine, training.known
    engine.settle()
    groups = training.groups()
    if known is None:
        slow, rates = None, [[MeanLearningRate() for _ in groups] for _ in engine.rates]
    elif known.are(groups) and known.formed_as(groups):
        slow, rates = training.slow, engine.rates
    else:
        engine.land()  # as the next step would do
        now = known.at_a_sync(groups)  # new parameters have not had a step yet
        slow = training.extended(now)[0]
        rates = [now.follow(known, of_fragment) for of_fragment in engine.rates]
    anchors = slow.anchors() if slow else {}
    everyone = range(sum(map(len, groups)) if slow else 0)
    return pack_state(
        engine.config,
        engine.schedule,
        rates,
        anchor=anchors,
        momentum=slow.momenta() if slow else {},
        frozen=[position for position in everyone if position not in anchors],
        launched=slow.at_launch() if slow else {},
        inner=_of_inner(training.inner, inner),
        samples=engine.samples,
    )


def check_slow_state(training: Training, saved: Any, inner: Any) -> None:
    """Raise ValueError unless ``saved`` and the inner state with it can be loaded completely."""
    params = list(map(real, parameters_of(training.inner)))

    def fault(name: str, position: int, tensor: Any) -> str | None:
        dtype = params[position].dtype
        return _fault(tensor, dtype if name == "launched" else slow_dtype(dtype))

    check_state(
        saved,
        training.engine.config,
        len(training.inner.param_groups),
        _shapes(training.inner),
        _of_inner(training.inner, inner),
        fault,
    )


@torch.inference_mode(False)
@torch.no_grad()
def load_slow_state(training: Training, saved: Any) -> None:
    """Take over a checked slow state, or start from scratch if it is None."""
    slow = known = None
    saved = None if saved is None else migrated(saved)
    if saved is not None and saved["step"] + len(saved["anchor"]):
        # First everything that can fail for lack of memory. Parameters that were trained and are
        # frozen now, or the reverse, are left to the next agreement.
        training.engine.wait()  # it may write into what is loaded, if these are our own tensors
        tensors = saved["anchor"], saved["momentum"], saved["launched"]
        groups, held = training.groups(), saved["anchor"]
        known = Parameters(groups, [place in held for place in range(sum(map(len, groups)))])
        received = training.take_spare()
        slow = training.reusable(known)
        if slow is None and received is not None and received.holds(*tensors):
            slow = received
        if slow is None:
            slow = training.slow_model(groups, held, fragments=training.engine.config.fragments)
        if not slow.holds(*tensors):
            slow.load(*tensors)
    training.begin_afresh()
    if saved is not None:
        training.engine.rates = unpack_counters(saved, training.engine.schedule)
        training.engine.samples = list(saved["samples"])
        training.engine.slow, training.known = slow, known


def _of_inner(inner: torch.optim.Optimizer, state: Any) -> dict[str, Any]:
    return pack_inner(type(inner).__name__, _shapes(inner), state, tensor_form)


def _shapes(inner: torch.optim.Optimizer) -> list[tuple[int, ...]]:
    return [tuple(param.shape) for param in parameters_of(inner)]


def _fault(tensor: Any, dtype: torch.dtype) -> str | None:
    """What is wrong with a saved tensor that should have this dtype."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
        return f"is no dense tensor with values but a {type(tensor).__name__}"
    if tensor.dtype != dtype:
        return f"is {tensor.dtype} and this optimizer keeps {dtype}"
    if tensor.numel() == 0:
        return None
    least, largest = tensor.aminmax()  # both are NaN if any element is
    return None if math.isfinite(least) and math.isfinite(largest) else "is not finite"
