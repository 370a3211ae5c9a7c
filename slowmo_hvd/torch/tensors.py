"""The slow state in memory: anchor x_{t,0} and slow momentum u_t, and the arithmetic on a bucket.

Memory in units of the parameters at float32: one for the anchor and, where β > 0, one for the
momentum; and two buckets for what is on the wire.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slowmo_hvd.core.outer import OuterStep
from slowmo_hvd.core.plan import Bucket, Leaf, Piece, plan

_LARGE = 2**14  # elements of a slice that is worth a call of its own
_IN_CACHE = 2**15  # elements of anchor, momentum and displacement that one outer step takes at once


def real(tensor: Tensor) -> Tensor:
    """``tensor`` without its graph, a complex one as pairs of real numbers: what is averaged."""
    detached = tensor.detach()
    return torch.view_as_real(detached) if detached.is_complex() else detached


def slow_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 parameters, float32 for all others, half precision included."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def read(tensor: Tensor, inside: slice) -> Tensor:
    """A slice of a tensor's elements, flat; a view, unless its memory has gaps."""
    return tensor.reshape(-1)[inside]


def write(tensor: Tensor, inside: slice, values: Tensor) -> None:
    """Put flat values there."""
    flat = tensor.reshape(-1)
    flat[inside].copy_(values)
    if flat.data_ptr() != tensor.data_ptr():  # a copy
        tensor.copy_(flat.view(tensor.shape))


class Room(NamedTuple):
    """What the tensors in one flat tensor have in common."""

    device: torch.device
    dtype: torch.dtype  #: of `real`
    wire: torch.dtype  #: on the wire, and of the slow state


def room_of(param: Tensor) -> Room:
    """A parameter's."""
    dtype = real(param).dtype
    return Room(param.device, dtype, slow_dtype(dtype))


def capacities(leaves: Iterable[Leaf], bucket_bytes: int) -> dict[Room, int]:
    """Elements of a bucket at the most, for each room."""
    rooms = {leaf.room for leaf in leaves}
    return {room: bucket_bytes // room.wire.itemsize for room in rooms}


class _Part(NamedTuple):
    """Neighbours in a bucket that one call of torch serves: small slices, or a large one.

    Attributes:
        group: their parameter group.
        start: where in the room they begin.
        stop: where they end.
        offset: where in the bucket they begin.
        slices: of the parameters' memory, end to end.
        scattered: a piece of a parameter whose memory has gaps, in place of the slices.
    """

    group: int
    start: int
    stop: int
    offset: int
    slices: list[Tensor]
    scattered: Piece | None = None


class SlowModel:
    """Anchor and slow momentum of the trained parameters, and the arithmetic of one outer step.

    Holds no counters, knows no schedule and never communicates: the engine asks it for the
    displacements of a bucket, has them summed over the workers, and gives the sum back.

    Attributes:
        params: the parameters by position.
        plan: the buckets.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Tensor]],
        trained: Collection[int],
        *,
        with_momentum: bool,
        bucket_bytes: int,
    ) -> None:
        """Take the parameters' values as the anchor; u_0 = 0.

        Args:
            groups: the parameters of each parameter group.
            trained: the positions of those to hold.
            with_momentum: whether there is a u to keep, that is β > 0.
            bucket_bytes: of a bucket on the wire, at the most.
        """
        held = set(trained)
        in_order = enumerate((index, p) for index, group in enumerate(groups) for p in group)
        self.params: dict[int, Tensor] = {}
        self._shapes: dict[int, torch.Size] = {}
        leaves: dict[int, Leaf] = {}
        for position, (index, param) in in_order:
            if position in held:
                numbers = real(param)
                self.params[position] = param
                self._shapes[position] = numbers.shape
                leaves[position] = Leaf(numbers.numel(), room_of(param), index)
        self._leaves = leaves
        self.plan = plan(leaves, leaves, capacities(leaves.values(), bucket_bytes))
        self._anchor: dict[Room, Tensor] = {}
        self._momentum: dict[Room, Tensor] = {}
        for room, size in self.plan.sizes.items():
            self._anchor[room] = torch.empty(size, dtype=room.wire, device=room.device)
            if with_momentum:
                self._momentum[room] = torch.zeros_like(self._anchor[room])
        for position, anchor in self.anchors().items():
            anchor.copy_(real(self.params[position]))
        self._parts: dict[int, tuple[list[int], list[_Part]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For deepcopy and pickle: a copy's parameters have other memory."""
        return {**self.__dict__, "_parts": {}}

    # ---- on one bucket -------------------------------------------------------------------

    @property
    def buckets(self) -> list[Bucket]:
        """All that is synchronised."""
        return self.plan.buckets

    @property
    def nbytes(self) -> int:
        """What the displacements have on the wire."""
        return sum(flat.nbytes for flat in self._anchor.values())

    def squared_norm(self, memory: Callable[[Bucket], Tensor]) -> float:
        """‖x^i‖²; not finite if any parameter is not.

        Args:
            memory: gives some of a bucket's size, to work in.
        """
        squares = [self._squared_norm(bucket, memory(bucket)) for bucket in self.buckets]
        if not squares:
            return 0.0
        device = squares[0].device  # one look at a GPU
        return torch.stack([square.to(device) for square in squares]).sum().item()

    def _squared_norm(self, bucket: Bucket, scratch: Tensor) -> Tensor:
        dtype = bucket.room.wire
        norms = [
            torch.linalg.vector_norm(self._numbers(part, scratch[part.offset :]), dtype=dtype)
            for part in self._parts_of(bucket)
        ]
        return torch.stack(norms).double().square().sum()

    def nothing(self, out: Tensor) -> None:
        """Write zeros, the displacement of a worker that is not sound."""
        out.zero_()

    def displacement(self, bucket: Bucket, out: Tensor) -> Tensor:
        """d^i = x_{t,0} - x^i of this worker; return its squared norm.

        Half-precision parameters started the window from the anchor rounded to their dtype, so
        that is what their displacement is measured from: the rounding is no progress of theirs,
        and the float32 anchor keeps what is too small for them to show.
        """
        room, squares = bucket.room, _nothing(bucket.room)
        for part in self._parts_of(bucket):
            anchor = self._anchor[room][part.start : part.stop]
            wire = out[part.offset : part.offset + len(anchor)]
            numbers = self._numbers(part, wire)
            for at in _strides(len(anchor), room):
                start = anchor[at] if room.dtype == room.wire else anchor[at].to(room.dtype)
                displacement = wire[at]
                torch.sub(start, numbers[at], out=displacement)
                squares += torch.dot(displacement, displacement)
        return squares

    def outer_step(
        self, bucket: Bucket, total: Tensor, workers: int, steps: Sequence[OuterStep]
    ) -> Tensor:
        """The outer step from the displacements' sum over ``workers``; then x^i = x_{t+1,0}.

        Returns the sum's squared norm.

        Args:
            bucket: one of the plan's.
            total: what `displacement` wrote, summed over the workers.
            workers: how many workers are in the sum.
            steps: the coefficients of each parameter group.
        """
        room, squares = bucket.room, _nothing(bucket.room)
        for part in self._parts_of(bucket):
            inside = slice(part.start, part.stop)
            anchor = self._anchor[room][inside]
            momentum = self._momentum[room][inside] if room in self._momentum else None
            displacement = total[part.offset : part.offset + len(anchor)]
            alone = part.slices[0] if len(part.slices) == 1 else None
            for at in _strides(len(anchor), room):
                x, d = anchor[at], displacement[at]
                u = None if momentum is None else momentum[at]
                squares += torch.dot(d, d)
                _outer_step(x, u, d, workers, steps[part.group])
                if alone is not None:
                    alone[at].copy_(x)
            if alone is None:
                self._restart(part, anchor)
        return squares

    def anchor(self, bucket: Bucket, out: Tensor) -> None:
        """Write x_{t,0} of a bucket into memory that travels."""
        out.copy_(self._anchor_of(bucket))

    def set_anchor(self, bucket: Bucket, values: Tensor) -> float:
        """Take these for a bucket's anchors; return the largest difference, NaN if there is one."""
        anchor, apart = self._anchor_of(bucket), 0.0
        for at in _strides(len(anchor), bucket.room):
            gap = (anchor[at] - values[at]).abs().max().double().item()
            if not gap <= apart and not math.isnan(apart):  # a NaN comes, and stays
                apart = gap
        anchor.copy_(values)
        return apart

    def _anchor_of(self, bucket: Bucket) -> Tensor:
        return self._anchor[bucket.room][bucket.runs[0].start : bucket.runs[-1].stop]

    def _restart(self, part: _Part, anchor: Tensor) -> None:
        if part.scattered is not None:
            inside = slice(part.scattered.start, part.scattered.stop)
            write(real(self.params[part.scattered.leaf]), inside, anchor)
        else:
            starts = torch.split(anchor, [len(numbers) for numbers in part.slices])
            torch._foreach_copy_(part.slices, starts)

    def _numbers(self, part: _Part, scratch: Tensor) -> Tensor:
        """The parameters of a part, flat; where there are several, in ``scratch``."""
        if part.scattered is not None:
            inside = slice(part.scattered.start, part.scattered.stop)
            return read(real(self.params[part.scattered.leaf]), inside)
        if len(part.slices) == 1:
            return part.slices[0]
        return torch.cat(part.slices, out=scratch[: part.stop - part.start])

    def _parts_of(self, bucket: Bucket) -> list[_Part]:
        """Its parts, made anew where a parameter has got other memory."""
        memory = [self.params[piece.leaf].data_ptr() for piece in bucket.pieces]
        known = self._parts.get(id(bucket))
        if known is None or known[0] != memory:
            self._parts[id(bucket)] = known = memory, self._make_parts(bucket)
        return known[1]

    def _make_parts(self, bucket: Bucket) -> list[_Part]:
        parts: list[_Part] = []
        for piece in bucket.pieces:
            begin, size = self.plan.places[piece.leaf] + piece.start, piece.stop - piece.start
            group, numbers = self._leaves[piece.leaf].group, real(self.params[piece.leaf])
            part = _Part(group, begin, begin + size, piece.offset, [], piece)
            if numbers.is_contiguous():
                slices = [numbers.view(-1)[piece.start : piece.stop]]
                part = part._replace(slices=slices, scattered=None)
            if parts and _are_small(parts[-1], part) and parts[-1].group == group:
                parts[-1].slices.extend(part.slices)
                parts[-1] = parts[-1]._replace(stop=part.stop)
            else:
                parts.append(part)
        return parts

    # ---- on all of it --------------------------------------------------------------------

    def restart(self, positions: Collection[int]) -> None:
        """Put the parameters at ``positions`` to their anchors: there they begin a window."""
        anchors = self.anchors()
        for position in positions:
            real(self.params[position]).copy_(anchors[position])

    def inherit(self, old: "SlowModel") -> set[int]:
        """Take over what ``old`` holds of the parameters that both have; return their positions.

        Where a parameter has got another dtype since, the anchor is what the old dtype could hold
        of it: from there the parameter started its window, and goes on with all of its digits.
        """
        there = {id(param): position for position, param in old.params.items()}
        anchors, old_anchors = self.anchors(), old.anchors()
        momenta, old_momenta = self.momenta(), old.momenta()
        taken = set()
        for position, param in self.params.items():
            place = there.get(id(param))
            if place is None or self._shapes[position] != old._shapes[place]:
                continue
            taken.add(position)
            anchor, dtype = old_anchors[place], old._leaves[place].room.dtype
            same = self._leaves[position].room.dtype == dtype
            anchors[position].copy_(anchor if same else anchor.to(dtype))
            if position in momenta and place in old_momenta:
                momenta[position].copy_(old_momenta[place])
        return taken

    def load(self, anchors: Mapping[int, Tensor], momenta: Mapping[int, Tensor]) -> None:
        """Copy saved tensors in, by the parameter's position."""
        for ours, saved in ((self.anchors(), anchors), (self.momenta(), momenta)):
            for position, tensor in ours.items():
                tensor.copy_(saved[position])

    def holds(self, anchors: Mapping[int, Tensor], momenta: Mapping[int, Tensor]) -> bool:
        """Whether these are its own, not copies of them."""
        pairs = ((self.anchors(), anchors), (self.momenta(), momenta))
        return all(_memory(ours) == _memory(theirs) for ours, theirs in pairs)

    def anchors(self) -> dict[int, Tensor]:
        """x_{t,0} by the parameter's position; views, not copies."""
        return self._views(self._anchor)

    def momenta(self) -> dict[int, Tensor]:
        """u_t by the parameter's position; views, not copies. Empty where β = 0."""
        return self._views(self._momentum)

    def _views(self, flats: Mapping[Room, Tensor]) -> dict[int, Tensor]:
        views = {}
        for position, leaf in self._leaves.items():
            if leaf.room in flats:
                begin = self.plan.places[position]
                flat = flats[leaf.room][begin : begin + leaf.size]
                views[position] = flat.view(self._shapes[position])
        return views


def _outer_step(
    anchor: Tensor, momentum: Tensor | None, total: Tensor, workers: int, step: OuterStep
) -> None:
    """The outer step in place."""
    anchor.add_(total, alpha=-step.step / workers)
    if momentum is None:
        return
    if step.carry:
        anchor.add_(momentum, alpha=-step.carry)
    if step.decay != 1:
        momentum.mul_(step.decay)
    if step.gain:
        momentum.add_(total, alpha=step.gain / workers)


def _nothing(room: Room) -> Tensor:
    return torch.zeros((), dtype=torch.float64, device=room.device)


def _strides(size: int, room: Room) -> list[slice]:
    """Slices that a CPU keeps in its cache from one operation to the next; a GPU wants all."""
    if room.device.type != "cpu":
        return [slice(0, size)]
    return [slice(at, min(at + _IN_CACHE, size)) for at in range(0, size, _IN_CACHE)]


def _are_small(*parts: _Part) -> bool:
    return all(part.scattered is None and len(part.slices[-1]) < _LARGE for part in parts)


def _memory(tensors: Mapping[int, Tensor]) -> dict[int, tuple[int, torch.Size]]:
    return {position: (tensor.data_ptr(), tensor.shape) for position, tensor in tensors.items()}
