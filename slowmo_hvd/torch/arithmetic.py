"""The outer step's arithmetic on flat tensors, in slices that stay in a CPU's cache."""

import torch
from torch import Tensor

from slowmo_hvd.core.buckets import Bucket
from slowmo_hvd.core.outer import OuterStep
from slowmo_hvd.torch.rooms import Room

_IN_CACHE = 2**15  # elements of each of anchor, momentum and displacement in one outer step


def displacement(anchor: Tensor, numbers: Tensor, out: Tensor, room: Room) -> Tensor:
    """Write d^i = x_{t,0} - x^i into ``out``; return its squared norm, a float64 tensor.

    Half-precision parameters started the window from the anchor rounded to their dtype. So their
    displacement is measured from there: the rounding is not progress, and the float32 anchor keeps
    what is too small for them to hold.
    """
    squares = zero(room)
    for at in strides(len(anchor), room):
        start = anchor[at] if room.dtype == room.wire else anchor[at].to(room.dtype)
        part = out[at]
        torch.sub(start, numbers[at], out=part)
        squares += torch.dot(part, part)
    return squares


def outer_step(
    anchor: Tensor,
    momentum: Tensor | None,
    total: Tensor,
    workers: int,
    step: OuterStep,
    room: Room,
    x: Tensor | None,
) -> Tensor:
    """The outer step in place, from a sum over ``workers``; return the sum's squared norm.

    Args:
        anchor: x_{t,0}, which becomes x_{t+1,0}.
        momentum: u_t, which becomes u_{t+1}; None if β = 0.
        total: the sum.
        workers: the number of workers in the sum.
        step: the coefficients.
        room: the room of these tensors.
        x: parameters that begin a window at x_{t+1,0}, or None.
    """
    squares = zero(room)
    for at in strides(len(anchor), room):
        d, start = total[at], anchor[at]
        squares += torch.dot(d, d)
        _outer_step(start, None if momentum is None else momentum[at], d, workers, step)
        if x is not None:
            x[at].copy_(start)
    return squares


def _outer_step(
    anchor: Tensor, momentum: Tensor | None, total: Tensor, workers: int, step: OuterStep
) -> None:
    anchor.add_(total, alpha=-step.step / workers)
    if momentum is None:
        return
    if step.carry:
        anchor.add_(momentum, alpha=-step.carry)
    if step.decay != 1:
        momentum.mul_(step.decay)
    if step.gain:
        momentum.add_(total, alpha=step.gain / workers)


class OnWires:
    """Operations on a bucket in the memory that travels, wherever its displacements start from."""

    def nothing(self, out: Tensor) -> None:
        """Write zeros, the displacement of a worker that is not sound."""
        out.zero_()

    def scale(self, out: Tensor, factor: float) -> None:
        """Multiply the memory that travels by a factor."""
        out.mul_(factor)

    def keep(self, bucket: Bucket, total: Tensor) -> tuple[Tensor, list[Tensor]]:
        """A copy of a sum, and the squared norm of each run in it."""
        return total.clone(), _squared_norms(bucket, total)


def _squared_norms(bucket: Bucket, total: Tensor) -> list[Tensor]:
    """The squared norm of each of a bucket's runs in a sum, as float64 tensors."""
    squares = []
    for _, start, stop, offset in bucket.runs:
        square = zero(bucket.room)
        for at in strides(stop - start, bucket.room):
            part = total[offset : offset + stop - start][at]
            square += torch.dot(part, part)
        squares.append(square)
    return squares


def land(anchor: Tensor, launched: Tensor, numbers: Tensor, out: Tensor, room: Room) -> None:
    """x^i ← x_{t+1,0} + (x^i - x^i at the launch).

    Args:
        anchor: x_{t+1,0}.
        launched: x^i at the launch.
        numbers: x^i.
        out: receives the new x^i; can be ``numbers``.
        room: the room of these tensors.
    """
    for at in strides(len(anchor), room):
        steps = numbers[at].to(room.wire, copy=True).sub_(launched[at])
        out[at].copy_(steps.add_(anchor[at]))  # exact where no step was taken


def zero(room: Room) -> Tensor:
    """A zero, as a float64 tensor without dimensions."""
    return torch.zeros((), dtype=torch.float64, device=room.device)


def strides(size: int, room: Room) -> list[slice]:
    """Slices that fit in a CPU's cache through several operations; one slice of all on a GPU."""
    if room.device.type != "cpu":
        return [slice(0, size)]
    return [slice(at, min(at + _IN_CACHE, size)) for at in range(0, size, _IN_CACHE)]
