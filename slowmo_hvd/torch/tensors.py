"""The slow state in memory, anchor x_{t,0} and slow momentum u_t, and the arithmetic on a bucket.

The memory, in units of the parameters in float32, is one for the anchor and, if β > 0, one for the
momentum. Add three buckets for what is on the wire, and one copy of a fragment while its average is
under way.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slowmo_hvd.core.buckets import Bucket, Leaf, Piece, plan, share_out
from slowmo_hvd.core.outer import OuterStep
from slowmo_hvd.torch.arithmetic import OnWires, displacement, land, outer_step, strides, zero
from slowmo_hvd.torch.launched import Launched
from slowmo_hvd.torch.rooms import Room, read, real, room_of, write

_LARGE = 2**14  # elements of a slice that is worth its own call


class _Part(NamedTuple):
    """Neighbours in a bucket that one call of torch handles: small slices, or one large slice.

    Attributes:
        group: their parameter group.
        start: where they begin in the room.
        stop: where they end in the room.
        offset: where they begin in the bucket.
        anchors: slices of the anchor's memory, end to end: one for each slice, or one for the
            scattered piece.
        slices: slices of the parameters' memory.
        scattered: instead of the slices, a piece of a parameter whose memory has gaps.
    """

    group: int
    start: int
    stop: int
    offset: int
    anchors: list[Tensor]
    slices: list[Tensor]
    scattered: Piece | None = None


class SlowModel(OnWires):
    """Anchor and slow momentum of the trained parameters, and the arithmetic of one outer step.

    It holds no counters, knows no schedule and never communicates. The engine asks it for the
    displacements of a bucket, sums them over the workers, and gives the sum back.

    Attributes:
        params: the parameters by position.
        plan: the buckets.
        launched: the fragments whose averages are under way.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Tensor]],
        trained: Collection[int],
        *,
        with_momentum: bool,
        bucket_bytes: int,
        fragments: int = 1,
    ) -> None:
        """Take the parameters' values as the anchor; u_0 = 0.

        Args:
            groups: the parameters of each parameter group.
            trained: the positions of those to hold.
            with_momentum: whether there is a u to keep, that is, β > 0.
            bucket_bytes: the largest size of a bucket on the wire.
            fragments: F, into which all parameters are divided, also those that are not held. So
                freezing some does not move the others to another fragment.
        """
        held = set(trained)
        in_order = enumerate((index, p) for index, group in enumerate(groups) for p in group)
        self.params: dict[int, Tensor] = {}
        self._shapes: dict[int, torch.Size] = {}
        leaves: dict[int, Leaf] = {}
        sizes = []
        for position, (index, param) in in_order:
            sizes.append(param.numel())
            if position in held:
                numbers = real(param)
                self.params[position] = param
                self._shapes[position] = numbers.shape
                leaves[position] = Leaf(numbers.numel(), room_of(param), index)
        self._leaves = leaves
        self.parts = share_out(sizes, fragments)
        self.plan = plan(leaves, leaves, bucket_bytes, self.parts)
        self._anchor: dict[Room, Tensor] = {}
        self._momentum: dict[Room, Tensor] = {}
        for room, size in self.plan.sizes.items():
            self._anchor[room] = torch.empty(size, dtype=room.wire, device=room.device)
            if with_momentum:
                self._momentum[room] = torch.zeros_like(self._anchor[room])
        for position, anchor in self.anchors().items():
            anchor.copy_(real(self.params[position]))
        self._parts: dict[int, tuple[list[int], list[_Part]]] = {}
        self.launched: dict[int, Launched] = {}
        self._spare: list[Tensor] = []  # memory of what has landed

    def __getstate__(self) -> dict[str, Any]:
        """For deepcopy and pickle: a copy's parameters have other memory."""
        return {**self.__dict__, "_parts": {}, "_spare": []}

    # ---- on one bucket -------------------------------------------------------------------

    @property
    def buckets(self) -> list[Bucket]:
        """All buckets that are synchronised."""
        return self.plan.buckets

    def buckets_of(self, fragment: int) -> Sequence[Bucket]:
        """The buckets of one fragment."""
        return self.plan.fragments[fragment]

    def squared_norm(self, buckets: Sequence[Bucket], memory: Callable[[Bucket], Tensor]) -> float:
        """‖x^i‖²; not finite if any parameter is not finite.

        Args:
            buckets: the buckets to look at.
            memory: returns working memory of a bucket's size.
        """
        squares = [self._squared_norm(bucket, memory(bucket)) for bucket in buckets]
        if not squares:
            return 0.0
        device = squares[0].device  # synchronise with a GPU only once
        return torch.stack([square.to(device) for square in squares]).sum().item()

    def _squared_norm(self, bucket: Bucket, scratch: Tensor) -> Tensor:
        dtype = bucket.room.wire
        norms = [
            torch.linalg.vector_norm(self._numbers(part, scratch[part.offset :]), dtype=dtype)
            for part in self._parts_of(bucket)
        ]
        return torch.stack(norms).double().square().sum()

    def displacement(self, bucket: Bucket, out: Tensor) -> Tensor:
        """Write d^i = x_{t,0} - x^i of this worker; return its squared norm."""
        room, squares = bucket.room, zero(bucket.room)
        for part in self._parts_of(bucket):
            anchor = self._anchor[room][part.start : part.stop]
            wire = out[part.offset : part.offset + len(anchor)]
            squares += displacement(anchor, self._numbers(part, wire), wire, room)
        return squares

    def outer_step(
        self, bucket: Bucket, total: Tensor, workers: int, steps: Sequence[OuterStep]
    ) -> Tensor:
        """Take the outer step from the displacements' sum over ``workers``; then x^i = x_{t+1,0}.

        Returns the sum's squared norm.

        Args:
            bucket: one of the plan's buckets.
            total: what `displacement` wrote, summed over the workers.
            workers: the number of workers in the sum.
            steps: the coefficients of each parameter group.
        """
        room, squares = bucket.room, zero(bucket.room)
        for part in self._parts_of(bucket):
            inside = slice(part.start, part.stop)
            anchor = self._anchor[room][inside]
            momentum = self._momentum[room][inside] if room in self._momentum else None
            sums = total[part.offset : part.offset + len(anchor)]
            alone = part.slices[0] if len(part.slices) == 1 else None
            squares += outer_step(anchor, momentum, sums, workers, steps[part.group], room, alone)
            if alone is None:
                self._write(part, part.anchors)
        return squares

    def anchor(self, bucket: Bucket, out: Tensor) -> None:
        """Write x_{t,0} of a bucket into memory that travels."""
        out.copy_(self._anchor_of(bucket))

    def set_anchor(self, bucket: Bucket, values: Tensor) -> float:
        """Set a bucket's anchors; return the largest difference, NaN if there is one."""
        anchor, apart = self._anchor_of(bucket), 0.0
        for at in strides(len(anchor), bucket.room):
            gap = (anchor[at] - values[at]).abs().max().double().item()
            if not gap <= apart and not math.isnan(apart):  # a NaN is taken, and kept
                apart = gap
        anchor.copy_(values)
        return apart

    def _anchor_of(self, bucket: Bucket) -> Tensor:
        return self._anchor[bucket.room][bucket.runs[0].start : bucket.runs[-1].stop]

    def _write(self, part: _Part, values: list[Tensor] | tuple[Tensor, ...]) -> None:
        """Write values into the parameters of a part, one tensor for each slice."""
        if part.scattered is not None:
            inside = slice(part.scattered.start, part.scattered.stop)
            write(real(self.params[part.scattered.leaf]), inside, values[0])
        else:
            torch._foreach_copy_(part.slices, values)

    def _numbers(self, part: _Part, scratch: Tensor) -> Tensor:
        """The parameters of a part, flat; if there are several, in ``scratch``."""
        if part.scattered is not None:
            inside = slice(part.scattered.start, part.scattered.stop)
            return read(real(self.params[part.scattered.leaf]), inside)
        if len(part.slices) == 1:
            return part.slices[0]
        return torch.cat(part.slices, out=scratch[: part.stop - part.start])

    def _parts_of(self, bucket: Bucket) -> list[_Part]:
        """The bucket's parts, made again if a parameter has other memory now."""
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
            anchors = [self._anchor[bucket.room][begin : begin + size]]
            part = _Part(group, begin, begin + size, piece.offset, anchors, [], piece)
            if numbers.is_contiguous():
                slices = [numbers.view(-1)[piece.start : piece.stop]]
                part = part._replace(slices=slices, scattered=None)
            if parts and _are_small(parts[-1], part) and parts[-1].group == group:
                parts[-1].anchors.extend(part.anchors)
                parts[-1].slices.extend(part.slices)
                parts[-1] = parts[-1]._replace(stop=part.stop)
            else:
                parts.append(part)
        return parts

    # ---- while steps go on ---------------------------------------------------------------

    def launch(self, fragment: int) -> Launched:
        """Remember where x^i is; return an object with the displacements from there."""
        buckets = self.buckets_of(fragment)
        launched = Launched(buckets, self._anchor, self._momentum, self._spare_memory)
        self.launched[fragment] = launched
        self._remember(fragment)
        return launched

    def launch_those_of(self, positions: Collection[int]) -> None:
        """Launch the fragments that have parameters at these positions."""
        for fragment, part in enumerate(self.parts):
            if not set(positions).isdisjoint(part):
                self.launch(fragment)

    def _remember(self, fragment: int) -> None:
        for part, room in self._parts_in(fragment):
            out = self.launched[fragment].part(room, part.start, part.stop)
            numbers = self._numbers(part, out)
            if len(part.slices) == 1 or part.scattered is not None:
                out.copy_(numbers)

    def return_to_anchor(self, fragment: int) -> None:
        """Set x^i back to x_{t,0}."""
        for part, _ in self._parts_in(fragment):
            self._write(part, part.anchors)
        self._remember(fragment)

    def land(self, fragment: int) -> None:
        """x^i ← x_{t+1,0} + (x^i - x^i at the launch); then forget the launch."""
        launched = self.launched[fragment]
        for part, room in self._parts_in(fragment):
            anchor = self._anchor[room][part.start : part.stop]
            before = launched.part(room, part.start, part.stop)
            if len(part.slices) == 1:
                land(anchor, before, part.slices[0], part.slices[0], room)
            else:
                numbers = self._numbers(part, torch.empty_like(before))
                landed = torch.empty_like(before)
                land(anchor, before, numbers, landed, room)
                self._write(part, torch.split(landed, [len(anchor) for anchor in part.anchors]))
        self.drop(fragment)

    def drop(self, fragment: int) -> None:
        """Forget a launch."""
        # For a GPU, torch's caching allocator keeps it.
        memory = self.launched.pop(fragment).memory.values()
        self._spare.extend(flat for flat in memory if flat.device.type == "cpu")

    def _parts_in(self, fragment: int) -> Iterator[tuple[_Part, Room]]:
        for bucket in self.buckets_of(fragment):
            for part in self._parts_of(bucket):
                yield part, bucket.room

    def _spare_memory(self, room: Room, size: int) -> Tensor:
        """Memory that a landed launch has left, or new memory.

        On a CPU new memory costs more than copying into it. It is large enough for each fragment in
        turn.
        """
        for index, flat in enumerate(self._spare):
            if (flat.device, flat.dtype) == (room.device, room.dtype):
                return self._spare.pop(index)
        if room.device.type == "cpu":
            leaves = ([self._leaves[p] for p in part if p in self._leaves] for part in self.parts)
            size = max(sum(leaf.size for leaf in part if leaf.room == room) for part in leaves)
        return torch.empty(size, dtype=room.dtype, device=room.device)

    # ---- on all of it --------------------------------------------------------------------

    def restart(self, positions: Collection[int]) -> None:
        """Set the parameters at ``positions`` to their anchors, where they begin a window."""
        anchors = self.anchors()
        for position in positions:
            real(self.params[position]).copy_(anchors[position])

    def inherit(self, old: "SlowModel") -> set[int]:
        """Take over what ``old`` holds of the parameters that both have; return their positions.

        If a parameter has another dtype since then, its anchor is rounded to what the old dtype
        could hold. The parameter started its window from there, and goes on with all of its digits.
        """
        there = {id(param): position for position, param in old.params.items()}
        anchors, old_anchors = self.anchors(), old.anchors()
        momenta, old_momenta = self.momenta(), old.momenta()
        for fragment in old.launched:
            self.launch(fragment)
        at_launch, old_at_launch = self.at_launch(), old.at_launch()
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
            if position in at_launch and place in old_at_launch:
                at_launch[position].copy_(old_at_launch[place])
        return taken

    def load(
        self,
        anchors: Mapping[int, Tensor],
        momenta: Mapping[int, Tensor],
        launched: Mapping[int, Tensor],
    ) -> None:
        """Copy saved tensors in, by the parameter's position."""
        for fragment in list(self.launched):
            self.drop(fragment)
        self.launch_those_of(launched)
        pairs = (
            (self.anchors(), anchors),
            (self.momenta(), momenta),
            (self.at_launch(), launched),
        )
        for ours, saved in pairs:
            for position, tensor in ours.items():
                tensor.copy_(saved[position])

    def holds(
        self,
        anchors: Mapping[int, Tensor],
        momenta: Mapping[int, Tensor],
        launched: Mapping[int, Tensor],
    ) -> bool:
        """Whether these tensors are its own, and not copies of them."""
        pairs = (
            (self.anchors(), anchors),
            (self.momenta(), momenta),
            (self.at_launch(), launched),
        )
        return all(_memory(ours) == _memory(theirs) for ours, theirs in pairs)

    def anchors(self) -> dict[int, Tensor]:
        """x_{t,0} by the parameter's position; views, not copies."""
        return self._views(self._anchor)

    def momenta(self) -> dict[int, Tensor]:
        """u_t by the parameter's position; views, not copies. Empty if β = 0."""
        return self._views(self._momentum)

    def at_launch(self) -> dict[int, Tensor]:
        """x^i at the launch, by the position of what has not landed; views, not copies."""
        views = {}
        for fragment, launched in self.launched.items():
            for position in filter(self._leaves.__contains__, self.parts[fragment]):
                leaf, begin = self._leaves[position], self.plan.places[position]
                if leaf.size:
                    flat = launched.part(leaf.room, begin, begin + leaf.size)
                else:
                    flat = torch.empty(0, dtype=leaf.room.dtype, device=leaf.room.device)
                views[position] = flat.view(self._shapes[position])
        return dict(sorted(views.items()))  # independent of the order of launches

    def _views(self, flats: Mapping[Room, Tensor]) -> dict[int, Tensor]:
        views = {}
        for position, leaf in self._leaves.items():
            if leaf.room in flats:
                begin = self.plan.places[position]
                flat = flats[leaf.room][begin : begin + leaf.size]
                views[position] = flat.view(self._shapes[position])
        return views


def _are_small(*parts: _Part) -> bool:
    return all(part.scattered is None and len(part.slices[-1]) < _LARGE for part in parts)


def _memory(tensors: Mapping[int, Tensor]) -> dict[int, tuple[int, torch.Size]]:
    return {position: (tensor.data_ptr(), tensor.shape) for position, tensor in tensors.items()}
