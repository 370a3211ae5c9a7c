"""The slow state in memory, anchor x_{t,0} and slow momentum u_t, and the arithmetic on a bucket.

The memory, in units of the variables in float32, is one for the anchor and, if β > 0, one for the
momentum. Add a few buckets during a sync. Everything here is called eagerly.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from slowmo_hvd.core.buckets import Bucket, Leaf, Piece, Plan, plan, share_out
from slowmo_hvd.core.outer import OuterStep
from slowmo_hvd.tensorflow.flat import Flat
from slowmo_hvd.tensorflow.native import native, path_of
from slowmo_hvd.tensorflow.rooms import (
    Room,
    SlowVariable,
    Wire,
    cast,
    constraint_of,
    flat_tensor,
    read,
    reshaped,
    room_of,
    slow_dtype,
)

_EAGER_CALLS = 100  # cost about as much as making a graph of these operations


class SlowModel:
    """Anchor and slow momentum of all variables, and the arithmetic of one outer step.

    It holds no counters, knows no schedule and never communicates. The engine asks it for the
    displacements of a bucket, sums them over the workers, and gives the sum back.

    Attributes:
        slots: the slow state of each variable, in the order in which they are saved.
        plan: the buckets of the variables that are trained.
        parts: the positions in each fragment.
        launched: the values of each fragment at its launch, if averages are launched.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Any]],
        add_variable: Callable[..., Any],
        *,
        with_momentum: bool,
        bucket_bytes: int,
        fragments: int = 1,
    ) -> None:
        """Make room for the slow state.

        Args:
            groups: the variables of each learning rate.
            add_variable: the optimizer's method, so that it saves, loads and broadcasts the slow
                state.
            with_momentum: whether there is a u to keep, that is, β > 0.
            bucket_bytes: the largest size of a bucket on the wire.
            fragments: F, into which the variables are divided.

        Raises:
            ValueError: a variable is not floating-point.
        """
        listed = [(variable, index) for index, group in enumerate(groups) for variable in group]
        for variable, _ in listed:
            dtype = native(variable).dtype
            if not dtype.is_floating:
                raise ValueError(
                    f"{path_of(variable)} is {dtype.name}, and only floating-point variables can "
                    "be averaged; give it an optimizer of its own that is not distributed"
                )
        first = list(dict.fromkeys(slow_dtype(variable) for variable, _ in listed))
        listed.sort(key=lambda pair: first.index(slow_dtype(pair[0])))
        self._leaves = {
            position: Leaf(native(variable).shape.num_elements(), room_of(variable), group)
            for position, (variable, group) in enumerate(listed)
        }
        self._bucket_bytes = bucket_bytes
        self.parts = share_out([leaf.size for leaf in self._leaves.values()], fragments)
        self._graphs: dict[tuple[str, int], Callable[..., Any]] = {}  # keep their buckets alive
        self._calls: dict[tuple[str, int], int] = {}
        self.plan = self._planned(self._leaves, self.parts)
        self.slots = []
        for position, (variable, group) in enumerate(listed):
            leaf, start = self._leaves[position], self.plan.places[position]
            place = slice(start, start + leaf.size)
            self.slots.append(SlowVariable(variable, group, leaf.room, place))
        # Initialised with zeros: the anchor is taken when the first step begins.
        self._anchor: dict[Room, Flat] = {}
        self._momentum: dict[Room, Flat] = {}
        for room, size in self.plan.sizes.items():
            self._anchor[room] = Flat(size, room.wire, f"{room.dtype}_anchor", add_variable)
            if with_momentum:
                name = f"{room.dtype}_slow_momentum"
                self._momentum[room] = Flat(size, room.wire, name, add_variable)
        self.launched: list[Any] = []

    def _planned(
        self, trained: Collection[int], parts: Sequence[Sequence[int]] | None = None
    ) -> Plan:
        return plan(self._leaves, trained, self._bucket_bytes, parts)

    def train(self, frozen: Collection[int]) -> None:
        """Synchronise all variables except those at these positions."""
        planned = self._planned(set(self._leaves) - set(frozen), self.parts)
        if planned != self.plan:
            self.plan, self._graphs, self._calls = planned, {}, {}

    def part(self, positions: Collection[int]) -> "SlowModel":
        """The same state, not a copy, that synchronises only the variables at these positions."""
        part = object.__new__(SlowModel)
        vars(part).update(vars(self))
        # It has the layout of the whole, in one fragment.
        buckets = self._planned(positions, self.parts).buckets
        part.plan = self.plan._replace(fragments=(tuple(buckets),))
        part._graphs, part._calls = {}, {}
        return part

    def frozen(self) -> tuple[int, ...]:
        """The positions of the variables whose ``trainable`` is False now."""
        return tuple(i for i, slot in enumerate(self.slots) if not slot.variable.trainable)

    # ---- on one bucket -------------------------------------------------------------------

    @property
    def buckets(self) -> list[Bucket]:
        """All buckets that are synchronised."""
        return self.plan.buckets

    def buckets_of(self, fragment: int) -> Sequence[Bucket]:
        """The buckets of one fragment."""
        return self.plan.fragments[fragment]

    def variables_in(self, fragments: Iterable[int]) -> set[int]:
        """The ids of the tf.Variables in these fragments."""
        positions = (position for fragment in fragments for position in self.parts[fragment])
        return {id(native(self.slots[position].variable)) for position in positions}

    def squared_norm(self, buckets: Sequence[Bucket], memory: Callable[[Bucket], Any]) -> float:
        """‖x^i‖² in these buckets; not finite if any variable is not finite."""
        squares = [self._often(self._squared_norm, bucket)() for bucket in buckets]
        return float(tf.add_n(squares)) if squares else 0.0

    def _squared_norm(self, bucket: Bucket) -> Any:
        pieces = [cast(piece, bucket.room.wire) for piece in self._pieces(bucket)]
        halves = tf.raw_ops.Pack(values=[tf.raw_ops.L2Loss(t=piece) for piece in pieces])
        return 2 * tf.reduce_sum(tf.cast(halves, tf.float64))

    def displacement(self, bucket: Bucket, out: Wire) -> Any:
        """d^i = x_{t,0} - x^i of this worker; return its squared norm.

        Half-precision variables started the window from the anchor rounded to their dtype. So their
        displacement is measured from there: the rounding is not progress, and the float32 anchor
        keeps what is too small for them to hold.
        """
        out.values, squares = self._often(self._displacement, bucket)()
        return squares

    def _displacement(self, bucket: Bucket) -> tuple[Any, Any]:
        start = self._anchors(bucket)
        if bucket.room.dtype != bucket.room.wire:
            start = tf.cast(tf.cast(start, bucket.room.dtype), bucket.room.wire)
        values = start - self._values(bucket)
        return values, _squared(values)

    def outer_step(
        self, bucket: Bucket, total: Wire, workers: int, steps: Sequence[OuterStep]
    ) -> Any:
        """Take the outer step from the displacements' sum over ``workers``; then x^i = x_{t+1,0}.

        Returns the sum's squared norm.

        Args:
            bucket: one of the plan's buckets.
            total: what `displacement` wrote, summed over the workers.
            workers: the number of workers in the sum.
            steps: the coefficients of each group.
        """
        values, total.values = total.values, None
        numbers = [[s.step / workers, s.carry, s.decay, s.gain / workers] for s in steps]
        coefficients = tf.constant(numbers, bucket.room.wire)
        squares = self._graph(self._outer_step, bucket)(values, coefficients)
        (self._graph if self._bound(bucket) else self._often)(self._restart, bucket)()
        return squares

    def keep(self, bucket: Bucket, total: Wire) -> tuple[Wire, list[Any]]:
        """A sum in its own wire, and the squared norm of each run in it."""
        kept = copy.copy(total)
        total.values = None
        return kept, [
            _squared(kept.values[offset : offset + stop - start])
            for _, start, stop, offset in bucket.runs
        ]

    def _bound(self, bucket: Bucket) -> bool:
        """Whether there is a constraint, on which the anchor depends. Equal on every rank."""
        return any(constraint_of(self.slots[piece.leaf]) for piece in bucket.pieces)

    def _outer_step(self, bucket: Bucket, values: Any, coefficients: Any) -> Any:
        anchor, momentum = self._anchor[bucket.room], self._momentum.get(bucket.room)
        squares = _squared(values)
        if len(bucket.runs) == 1:
            inside = slice(bucket.runs[0].start, bucket.runs[0].stop)
            x = anchor.whole(inside)
            u = None if momentum is None else momentum.whole(inside)
            if x is not None:
                _step_in_place(x, u, values, *tf.unstack(coefficients[bucket.runs[0].group]))
                return squares
        moved, gained = [], []
        for group, start, stop, offset in bucket.runs:
            step, carry, decay, gain = tf.unstack(coefficients[group])
            inside, displacement = slice(start, stop), values[offset : offset + stop - start]
            x = anchor.read(inside) - step * displacement
            if momentum is not None:
                u = momentum.read(inside)
                x -= carry * u
                gained.append((inside, decay * u + gain * displacement))
            moved.append((inside, x))
        anchor.write(moved)
        if momentum is not None:
            momentum.write(gained)
        return squares

    def _often(
        self, method: Callable[..., Any], bucket: Bucket, name: str = ""
    ) -> Callable[..., Any]:
        """The method on a bucket, at first eagerly, and as a graph once it is called often.

        This is for what is done to each variable, because a graph for hundreds of them takes
        seconds to make. A rank that came later makes the graph later, so both ways must give the
        other ranks the same bits.
        """
        key = name or method.__name__, id(bucket)
        self._calls[key] = self._calls.get(key, 0) + 1
        if self._calls[key] <= _EAGER_CALLS:
            return partial(method, bucket)
        return self._graph(method, bucket, name)

    def _graph(
        self, method: Callable[..., Any], bucket: Bucket, name: str = ""
    ) -> Callable[..., Any]:
        """The method on a bucket as a graph, made once. With many small operations it is faster."""
        key = name or method.__name__, id(bucket)
        if key not in self._graphs:
            self._graphs[key] = tf.function(partial(method, bucket), autograph=False)
        return self._graphs[key]

    def scale(self, out: Wire, factor: float) -> None:
        """Multiply the memory that travels by a factor."""
        out.values *= tf.cast(factor, out.room.wire)

    def nothing(self, out: Wire) -> None:
        """Write zeros, the displacement of a worker that is not sound."""
        out.values = tf.zeros([out.size], out.room.wire)

    def anchor(self, bucket: Bucket, out: Wire) -> None:
        """Write x_{t,0} of a bucket into the memory that travels."""
        out.values = self._anchors(bucket)

    def set_anchor(self, bucket: Bucket, values: Wire) -> float:
        """Set a bucket's anchors; return the largest difference, NaN if there is one."""
        given, values.values = values.values, None
        apart = float(tf.reduce_max(tf.abs(self._anchors(bucket) - given)))
        self._anchor[bucket.room].write(
            (slice(start, stop), given[offset : offset + stop - start])
            for _, start, stop, offset in bucket.runs
        )
        return apart

    def _values(self, bucket: Bucket) -> Any:
        return tf.cast(tf.concat(self._pieces(bucket), 0), bucket.room.wire)

    def _pieces(self, bucket: Bucket) -> list[Any]:
        return [read(native(self.slots[piece.leaf].variable), piece) for piece in bucket.pieces]

    def _anchors(self, bucket: Bucket) -> Any:
        anchor = self._anchor[bucket.room]
        return tf.concat([anchor.read(slice(run.start, run.stop)) for run in bucket.runs], 0)

    def restart(self) -> None:
        """Set all variables that are synchronised to their anchors."""
        for bucket in self.buckets:
            self._restart(bucket)

    # ---- the variables -------------------------------------------------------------------

    def _restart(self, bucket: Bucket, since: Any = None) -> None:
        """Set the variables that end in this bucket to their anchors, where they begin a window.

        The steps that they have taken ``since`` a launch, a `Launched`, are kept.

        TensorFlow cannot write into a part of a variable, so a variable that is cut waits for its
        last bucket. A variable's constraint holds after the slow step, as after every local step.
        It changes the anchor too, and in the same way on every rank, because the anchors are equal.
        """
        slots = [self.slots[piece.leaf] for piece in bucket.pieces if self._ends(piece)]
        bound = []
        for slot, anchor in self._anchors_of(bucket.room, slots):
            variable = native(slot.variable)
            value = cast(reshaped(anchor, slot.shape), variable.dtype)
            constraint = constraint_of(slot)
            if constraint is not None:
                value = tf.cast(tf.convert_to_tensor(constraint(value)), variable.dtype)
                anchor = tf.cast(tf.reshape(value, [-1]), slot.room.wire)
                bound.append((slot.place, anchor))
            if since is not None:
                value = tf.reshape(anchor + since.steps_of(slot), slot.shape)
                value = cast(value, variable.dtype)  # exact where no step was taken
                if constraint is not None:
                    value = tf.cast(tf.convert_to_tensor(constraint(value)), variable.dtype)
            tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
        self._anchor[bucket.room].write(bound)

    def _anchors_of(
        self, room: Room, slots: Sequence[SlowVariable]
    ) -> Iterator[tuple[SlowVariable, Any]]:
        """Each of these variables and its anchor, flat. Neighbours are read at once."""
        beside: list[list[SlowVariable]] = []
        for slot in slots:
            if beside and beside[-1][-1].place.stop == slot.place.start:
                beside[-1].append(slot)
            else:
                beside.append([slot])
        for run in beside:
            values = self._anchor[room].read(slice(run[0].place.start, run[-1].place.stop))
            sizes = [slot.place.stop - slot.place.start for slot in run]
            yield from zip(run, tf.split(values, sizes), strict=True)

    def _ends(self, piece: Piece) -> bool:
        return piece.stop == self._leaves[piece.leaf].size

    # ---- on all of it --------------------------------------------------------------------

    def anchor_here(self, positions: Iterable[int]) -> None:
        """Take the values of the variables at these positions as their anchors."""
        values: dict[Room, list[tuple[slice, Any]]] = {}
        for slot in (self.slots[position] for position in sorted(positions)):
            value = tf.cast(tf.reshape(native(slot.variable), [-1]), slot.room.wire)
            values.setdefault(slot.room, []).append((slot.place, value))
        self._write(self._anchor, values)

    def begin_afresh(self, positions: Collection[int]) -> None:
        """`anchor_here`, and set the slow momentum to zero."""
        self.anchor_here(positions)
        zeros: dict[Room, list[tuple[slice, Any]]] = {}
        for slot in (self.slots[position] for position in sorted(positions)):
            zero = tf.zeros([slot.place.stop - slot.place.start], slot.room.wire)
            zeros.setdefault(slot.room, []).append((slot.place, zero))
        self._write(self._momentum, zeros)

    def _write(self, flats: dict[Room, Flat], values: dict[Room, list[tuple[slice, Any]]]) -> None:
        for room, flat in flats.items():
            # In the order of their places, which with one part is that of their positions.
            flat.write(sorted(values.get(room, []), key=lambda update: update[0].start))

    def saved(self, in_flight: Collection[int]) -> Iterator[tuple[str, Any]]:
        """Anchors and momenta of all variables, with the names under which they are saved.

        Args:
            in_flight: the fragments whose averages have not landed; their launched values are saved
                too.
        """
        for launched in map(self.launched.__getitem__, in_flight):
            for position in launched.positions:
                slot = self.slots[position]
                yield f"launched.{position}", tf.reshape(launched.at_launch(slot), slot.shape)
        for index, slot in enumerate(self.slots):
            for kind, flats in self._kinds().items():
                value = flats[slot.room].read(slot.place)
                yield f"{kind}.{index}", tf.reshape(value, slot.shape)

    def forms(self, in_flight: Collection[int]) -> dict[str, tf.TensorSpec]:
        """Shapes and dtypes of what `saved` gives."""
        launched = {p for fragment in in_flight for p in self.parts[fragment]}
        return {
            f"launched.{position}": tf.TensorSpec(slot.shape, slot.room.dtype)
            for position, slot in enumerate(self.slots)
            if position in launched
        } | {
            f"{kind}.{index}": tf.TensorSpec(slot.shape, slot.room.wire)
            for index, slot in enumerate(self.slots)
            for kind in self._kinds()
        }

    def load(self, values: Any, in_flight: Collection[int]) -> None:
        """Take what `saved` gave, by the same names."""
        for launched in map(self.launched.__getitem__, in_flight):
            launched.set_at_launch(values)
        in_place = sorted(enumerate(self.slots), key=lambda pair: pair[1].place.start)
        for kind, flats in self._kinds().items():
            for room, flat in flats.items():
                flat.write(
                    (slot.place, flat_tensor(values[f"{kind}.{index}"], room.wire))
                    for index, slot in in_place
                    if slot.room == room
                )

    def _kinds(self) -> dict[str, dict[Room, Flat]]:
        return {"anchor": self._anchor} | ({"momentum": self._momentum} if self._momentum else {})


def _step_in_place(x: Any, u: Any, d: Any, step: Any, carry: Any, decay: Any, gain: Any) -> None:
    """The outer step on whole variables, without memory for intermediate values."""
    descend = tf.raw_ops.ResourceApplyGradientDescent  # var -= alpha * delta
    descend(var=x.handle, alpha=step, delta=d)
    if u is not None:
        descend(var=x.handle, alpha=carry, delta=u.read_value())
        u.assign(decay * u)
        descend(var=u.handle, alpha=-gain, delta=d)


def _squared(values: Any) -> Any:
    """The squared norm, a float64 tensor without dimensions."""
    return 2 * tf.cast(tf.nn.l2_loss(values), tf.float64)
