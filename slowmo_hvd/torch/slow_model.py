"""The slow state in memory: anchor x_{t,0} and slow momentum u_t, flat, and the outer step on them.

Memory in units of the parameters at float32: one for the anchor and, where β > 0, one for the
momentum; and one for the displacements on the wire, on a GPU only while a sync lasts.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slowmo_hvd.core.outer import OuterStep


def real(tensor: Tensor) -> Tensor:
    """``tensor`` without its graph, a complex one as pairs of real numbers: what is averaged."""
    detached = tensor.detach()
    return torch.view_as_real(detached) if detached.is_complex() else detached


def slow_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 parameters, float32 for all others, half precision included."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Form(NamedTuple):
    """What a parameter was when its place in a bucket was made; `real` of it, to be exact."""

    shape: torch.Size
    dtype: torch.dtype


class Bucket:
    """The parameters of one device and slow dtype, end to end in one flat tensor.

    They stand in the optimizer's order, so that every parameter group is one slice.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self.params: dict[int, Tensor] = {}  # by position in the optimizer
        self.forms: dict[int, Form] = {}
        self.group_sizes: dict[int, int] = {}  # elements
        self.anchor = torch.empty(0)
        self.momentum: Tensor | None = None
        self._wire: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For deepcopy and pickle: the wire holds nothing between two syncs."""
        return {**self.__dict__, "_wire": None}

    def add(self, position: int, param: Tensor, group: int) -> None:
        """Append a parameter of parameter group ``group``."""
        self.params[position] = param
        self.forms[position] = Form(real(param).shape, real(param).dtype)
        self.group_sizes[group] = self.group_sizes.get(group, 0) + real(param).numel()

    def allocate(self, *, with_momentum: bool) -> None:
        """Take the parameters' values as the anchor; u_0 = 0."""
        self.anchor = torch.empty(self.size, dtype=self.dtype, device=self.device)
        for _, param, anchor in self.views(self.anchor):
            anchor.copy_(param)
        self.momentum = torch.zeros_like(self.anchor) if with_momentum else None

    @property
    def size(self) -> int:
        """Elements."""
        return sum(self.group_sizes.values())

    def wire(self, spare: int) -> Tensor:
        """Memory for one flat displacement and ``spare`` elements more, with any contents.

        Kept from sync to sync on a CPU, where to map that much anew costs more than the
        arithmetic of a sync; a GPU has torch's caching allocator for that.
        """
        if self._wire is None or self._wire.numel() != self.size + spare:
            self._wire = None  # first free, then allocate
            wire = torch.empty(self.size + spare, dtype=self.dtype, device=self.device)
            if self.device.type != "cpu":
                return wire
            self._wire = wire
        return self._wire

    def groups(self) -> Iterator[tuple[int, slice]]:
        """Every parameter group's index and its slice of the flat tensors."""
        start = 0
        for group, size in self.group_sizes.items():
            yield group, slice(start, start + size)
            start += size

    def views(self, flat: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Every parameter's position, the parameter, and its part of ``flat`` in its shape."""
        start = 0
        for position, param in self.params.items():
            shape = self.forms[position].shape
            yield position, real(param), flat[start : start + shape.numel()].view(shape)
            start += shape.numel()


class SlowModel:
    """Anchor and slow momentum of the trained parameters, and the arithmetic of one outer step.

    Holds no counters, knows no schedule and never communicates: the optimizer asks it for the
    displacements, has them summed over the workers, and gives the sums back to `apply`.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Tensor]],
        trained: Collection[int],
        *,
        with_momentum: bool,
    ) -> None:
        """Take the parameters' values as the anchor; u_0 = 0.

        Args:
            groups: the parameters of each parameter group.
            trained: the positions of those to hold.
            with_momentum: whether there is a u to keep, that is β > 0.
        """
        buckets: dict[tuple[torch.device, torch.dtype], Bucket] = {}
        in_order = [(index, param) for index, group in enumerate(groups) for param in group]
        held = set(trained)
        for position, (index, param) in enumerate(in_order):
            if position in held:
                key = (param.device, slow_dtype(real(param).dtype))
                buckets.setdefault(key, Bucket(*key)).add(position, param, index)
        if not buckets:  # one without elements: the figures of a sync travel at its end
            device = in_order[0][1].device if in_order else torch.device("cpu")
            buckets[device, torch.float32] = Bucket(device, torch.float32)
        self.buckets = list(buckets.values())
        for bucket in self.buckets:
            bucket.allocate(with_momentum=with_momentum)

    def displacements(self, spare: int) -> list[Tensor]:
        """d^i = x_{t,0} - x^i of this worker, flat, one tensor a bucket.

        Half-precision parameters started the window from the anchor rounded to their dtype, so
        that is what their displacement is measured from: the rounding is no progress of theirs,
        and the float32 anchor keeps what is too small for them to show.

        Args:
            spare: room left at the end of the first tensor, for figures that travel along.
        """
        flats = self._wires(spare)
        for bucket, flat in zip(self.buckets, flats, strict=True):
            starts = bucket.views(bucket.anchor)
            for (_, param, anchor), (_, _, out) in zip(starts, bucket.views(flat), strict=True):
                start = anchor if param.dtype == anchor.dtype else anchor.to(param.dtype)
                torch.sub(start, param, out=out)
        return flats

    def nothing(self, spare: int) -> list[Tensor]:
        """The `displacements` of a worker that adds nothing, with zeros for the figures too."""
        return [flat.zero_() for flat in self._wires(spare)]

    def _wires(self, spare: int) -> list[Tensor]:
        first, *others = self.buckets
        return [first.wire(spare), *(bucket.wire(0) for bucket in others)]

    def squared_norm(self, flats: Sequence[Tensor]) -> float:
        """The squared Euclidean norm of what `displacements` returned, over all buckets."""
        norms = (
            float(torch.linalg.vector_norm(flat[: bucket.size]))
            for bucket, flat in zip(self.buckets, flats, strict=True)
        )
        return sum(norm * norm for norm in norms)  # not **, which raises where this is infinite

    def apply(self, sums: Sequence[Tensor], workers: int, steps: Sequence[OuterStep]) -> None:
        """The outer step from the displacements' sum over ``workers``; then x^i = x_{t+1,0}.

        Args:
            sums: what `displacements` returned, summed over the workers.
            workers: how many workers are in the sums.
            steps: the coefficients of each parameter group.
        """
        for bucket, total in zip(self.buckets, sums, strict=True):
            for group, part in bucket.groups():
                step, carry, decay, gain = steps[group]
                anchor, displacement = bucket.anchor[part], total[part]
                anchor.add_(displacement, alpha=-step / workers)
                if bucket.momentum is not None:
                    momentum = bucket.momentum[part]
                    if carry:
                        anchor.add_(momentum, alpha=-carry)
                    if decay != 1:
                        momentum.mul_(decay)
                    if gain:
                        momentum.add_(displacement, alpha=gain / workers)
        self.restart(self.params())

    def restart(self, positions: Collection[int]) -> None:
        """Put the parameters at ``positions`` to their anchors: there they begin a window."""
        for bucket in self.buckets:
            for position, param, anchor in bucket.views(bucket.anchor):
                if position in positions:
                    param.copy_(anchor)

    def inherit(self, old: "SlowModel") -> set[int]:
        """Take over what ``old`` holds of the parameters that both have; return their positions.

        Where a parameter has got another dtype since, the anchor is what the old dtype could hold
        of it: from there the parameter started its window, and goes on with all of its digits.
        """
        there = {id(param): position for position, param in old.params().items()}
        forms, old_forms = self._forms(), old._forms()
        anchors, old_anchors = self.anchors(), old.anchors()
        momenta, old_momenta = self.momenta(), old.momenta()
        taken = set()
        for position, param in self.params().items():
            place = there.get(id(param))
            if place is None or forms[position].shape != old_forms[place].shape:
                continue
            taken.add(position)
            anchor, dtype = old_anchors[place], old_forms[place].dtype
            same = forms[position].dtype == dtype
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

    def params(self) -> dict[int, Tensor]:
        """The parameters by position."""
        return {where: param for bucket in self.buckets for where, param in bucket.params.items()}

    def _forms(self) -> dict[int, Form]:
        return {where: form for bucket in self.buckets for where, form in bucket.forms.items()}

    def anchors(self) -> dict[int, Tensor]:
        """x_{t,0} by the parameter's position; views, not copies."""
        return {
            position: view
            for bucket in self.buckets
            for position, _, view in bucket.views(bucket.anchor)
        }

    def momenta(self) -> dict[int, Tensor]:
        """u_t by the parameter's position; views, not copies. Empty where β = 0."""
        return {
            position: view
            for bucket in self.buckets
            if bucket.momentum is not None
            for position, _, view in bucket.views(bucket.momentum)
        }


def _memory(tensors: Mapping[int, Tensor]) -> dict[int, tuple[int, torch.Size]]:
    return {position: (tensor.data_ptr(), tensor.shape) for position, tensor in tensors.items()}
