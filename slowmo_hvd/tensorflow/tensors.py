"""The slow state in memory: anchor x_{t,0} and slow momentum u_t, and the arithmetic on a bucket.

Memory in units of the variables at float32: one for the anchor and, where β > 0, one for the
momentum; and a few buckets while a sync lasts. All of it is eager.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import tensorflow as tf

from slowmo_hvd.core.outer import OuterStep
from slowmo_hvd.core.plan import Bucket, Leaf, Piece, Plan, plan


def native(variable: Any) -> Any:
    """The ``tf.Variable`` of a Keras variable, or the ``tf.Variable`` itself."""
    return variable if isinstance(variable, tf.Variable) else variable.value


def slow_dtype(variable: Any) -> str:
    """float64 for float64 variables, float32 for all others, half precision included."""
    return "float64" if native(variable).dtype == tf.float64 else "float32"


def path_of(variable: Any) -> str:
    """The variable's name with its layers', as the optimizer's own variables can have it."""
    path: str = getattr(variable, "path", variable.name)
    return path.replace("/", "_").replace(":", "_")


class Room(NamedTuple):
    """What the variables in one flat tensor have in common."""

    dtype: str
    wire: str  #: the dtype on the wire, and of the slow state

    @property
    def itemsize(self) -> int:
        """Bytes of an element on the wire."""
        return int(tf.as_dtype(self.wire).size)


def room_of(variable: Any) -> Room:
    """A variable's."""
    return Room(native(variable).dtype.name, slow_dtype(variable))


def capacities(leaves: Iterable[Leaf], bucket_bytes: int) -> dict[Room, int]:
    """Elements of a bucket at the most, for each room."""
    return {leaf.room: bucket_bytes // leaf.room.itemsize for leaf in leaves}


@dataclasses.dataclass
class Wire:
    """What travels: TensorFlow's tensors cannot be written to, so a wire is given one."""

    room: Room
    size: int
    values: Any = None


def read(variable: Any, piece: Piece) -> Any:
    """A slice of a tf.Variable's elements, flat."""
    return tf.reshape(variable, [-1])[piece.start : piece.stop]


class SlowVariable(NamedTuple):
    """One variable of the model and where its slow state is."""

    variable: Any  #: as the optimizer got it, a Keras variable or a tf.Variable
    group: int  #: which learning rate it has
    room: Room
    place: slice  #: in the room

    @property
    def shape(self) -> tuple[int, ...]:
        """The variable's."""
        return tuple(self.variable.shape)


class SlowModel:
    """Anchor and slow momentum of all variables, and the arithmetic of one outer step.

    Holds no counters, knows no schedule and never communicates: the engine asks it for the
    displacements of a bucket, has them summed over the workers, and gives the sum back.

    Attributes:
        slots: every variable's, in the order in which they are saved.
        plan: the buckets of those that are trained.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Any]],
        add_variable: Callable[..., Any],
        *,
        with_momentum: bool,
        bucket_bytes: int,
    ) -> None:
        """Make room for the slow state.

        Args:
            groups: the variables of each learning rate.
            add_variable: the optimizer's, so that it saves, loads and broadcasts the slow state.
            with_momentum: whether there is a u to keep, that is β > 0.
            bucket_bytes: of a bucket on the wire, at the most.

        Raises:
            ValueError: a variable is not of floating point.
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
        self.plan = self._planned(self._leaves)
        self.slots = []
        for position, (variable, group) in enumerate(listed):
            leaf, start = self._leaves[position], self.plan.places[position]
            place = slice(start, start + leaf.size)
            self.slots.append(SlowVariable(variable, group, leaf.room, place))
        self._anchor: dict[Room, Any] = {}
        self._momentum: dict[Room, Any] = {}
        for room, size in self.plan.sizes.items():
            # Always initialised with zeros: the anchor is taken when the first step begins.
            add = partial(add_variable, shape=(size,), dtype=room.wire)
            self._anchor[room] = native(add(name=f"{room.dtype}_anchor"))
            if with_momentum:
                self._momentum[room] = native(add(name=f"{room.dtype}_slow_momentum"))

    def _planned(self, trained: Collection[int]) -> Plan:
        capacity = capacities(self._leaves.values(), self._bucket_bytes)
        return plan(self._leaves, trained, capacity)

    def variables(self) -> list[Any]:
        """All that it keeps, as tf.Variables."""
        return [*self._anchor.values(), *self._momentum.values()]

    def train(self, frozen: Collection[int]) -> None:
        """Synchronise all variables but those at these positions."""
        self.plan = self._planned(set(self._leaves) - set(frozen))

    def part(self, positions: Collection[int]) -> "SlowModel":
        """The variables at these positions alone are synchronised; the same state, and no copy."""
        part = object.__new__(SlowModel)
        vars(part).update(vars(self))
        part.plan = self._planned(positions)
        return part

    def frozen(self) -> tuple[int, ...]:
        """The positions of the variables whose ``trainable`` is False now."""
        return tuple(i for i, slot in enumerate(self.slots) if not slot.variable.trainable)

    # ---- on one bucket -------------------------------------------------------------------

    @property
    def buckets(self) -> list[Bucket]:
        """All that is synchronised."""
        return self.plan.buckets

    @property
    def nbytes(self) -> int:
        """What the displacements have on the wire."""
        return sum(bucket.size * bucket.room.itemsize for bucket in self.buckets)

    def squared_norm(self, memory: Callable[[Bucket], Any]) -> float:
        """‖x^i‖²; not finite if any variable is not."""
        squares = [_squared(self._values(bucket)) for bucket in self.buckets]
        return float(tf.add_n(squares)) if squares else 0.0

    def displacement(self, bucket: Bucket, out: Wire) -> Any:
        """d^i = x_{t,0} - x^i of this worker; return its squared norm.

        Half-precision variables started the window from the anchor rounded to their dtype, so
        that is what their displacement is measured from: the rounding is no progress of theirs,
        and the float32 anchor keeps what is too small for them to show.
        """
        start = self._anchors(bucket)
        if bucket.room.dtype != bucket.room.wire:
            start = tf.cast(tf.cast(start, bucket.room.dtype), bucket.room.wire)
        out.values = start - self._values(bucket)
        return _squared(out.values)

    def outer_step(
        self, bucket: Bucket, total: Wire, workers: int, steps: Sequence[OuterStep]
    ) -> Any:
        """The outer step from the displacements' sum over ``workers``; then x^i = x_{t+1,0}.

        Returns the sum's squared norm.

        Args:
            bucket: one of the plan's.
            total: what `displacement` wrote, summed over the workers.
            workers: how many workers are in the sum.
            steps: the coefficients of each group.
        """
        values, total.values = total.values, None
        for group, start, stop, offset in bucket.runs:
            step, inside = steps[group], slice(start, stop)
            displacement = values[offset : offset + stop - start]
            anchor = self._anchor[bucket.room]
            moved = anchor[inside] - (step.step / workers) * displacement
            if bucket.room in self._momentum:
                momentum = self._momentum[bucket.room]
                old = momentum[inside]
                if step.carry:
                    moved -= step.carry * old
                momentum[inside].assign(step.decay * old + (step.gain / workers) * displacement)
            anchor[inside].assign(moved)
        self._restart(bucket)
        return _squared(values)

    def nothing(self, out: Wire) -> None:
        """Write zeros, the displacement of a worker that is not sound."""
        out.values = tf.zeros([out.size], out.room.wire)

    def anchor(self, bucket: Bucket, out: Wire) -> None:
        """Write x_{t,0} of a bucket into what travels."""
        out.values = self._anchors(bucket)

    def set_anchor(self, bucket: Bucket, values: Wire) -> float:
        """Take these for a bucket's anchors; return the largest difference, NaN if there is one."""
        given, values.values = values.values, None
        apart = float(tf.reduce_max(tf.abs(self._anchors(bucket) - given)))
        for _, start, stop, offset in bucket.runs:
            self._anchor[bucket.room][start:stop].assign(given[offset : offset + stop - start])
        return apart

    def _values(self, bucket: Bucket) -> Any:
        parts = [read(native(self.slots[piece.leaf].variable), piece) for piece in bucket.pieces]
        return tf.cast(tf.concat(parts, 0), bucket.room.wire)

    def _anchors(self, bucket: Bucket) -> Any:
        anchor = self._anchor[bucket.room]
        return tf.concat([anchor[start:stop] for _, start, stop, _ in bucket.runs], 0)

    def _restart(self, bucket: Bucket) -> None:
        """Put the variables that end in this bucket to their anchors: they begin a window.

        There is no writing into a part of a variable, so one that is cut waits for its last bucket.
        """
        self.restart(piece.leaf for piece in bucket.pieces if self._ends(piece))

    def _ends(self, piece: Piece) -> bool:
        return piece.stop == self._leaves[piece.leaf].size

    # ---- on all of it --------------------------------------------------------------------

    def restart(self, positions: Iterable[int]) -> None:
        """Put the variables at these positions to their anchors.

        A variable's constraint holds after the slow step as after every local one, and binds the
        anchor with it; it comes out equal on every rank, since the anchor is.
        """
        for slot in (self.slots[position] for position in positions):
            variable, anchor = native(slot.variable), self._anchor[slot.room][slot.place]
            value = tf.cast(tf.reshape(anchor, slot.shape), variable.dtype)
            constraint = getattr(slot.variable, "constraint", None)
            if constraint is not None:
                value = tf.cast(tf.convert_to_tensor(constraint(value)), variable.dtype)
                anchor = tf.cast(tf.reshape(value, [-1]), slot.room.wire)
                self._anchor[slot.room][slot.place].assign(anchor)
            variable.assign(value)

    def anchor_here(self, positions: Iterable[int]) -> None:
        """Take the values of the variables at these positions as their anchors."""
        for slot in (self.slots[position] for position in positions):
            value = tf.cast(tf.reshape(native(slot.variable), [-1]), slot.room.wire)
            self._anchor[slot.room][slot.place].assign(value)

    def begin_afresh(self, positions: Collection[int]) -> None:
        """`anchor_here`, without a slow momentum."""
        self.anchor_here(positions)
        for slot in (self.slots[position] for position in positions):
            if slot.room in self._momentum:
                size = slot.place.stop - slot.place.start
                self._momentum[slot.room][slot.place].assign(tf.zeros([size], slot.room.wire))

    def saved(self) -> dict[str, Any]:
        """Anchors and momenta of all variables, by the names under which they are saved."""
        named = {}
        for index, slot in enumerate(self.slots):
            for kind, flats in self._kinds().items():
                named[f"{kind}.{index}"] = tf.reshape(flats[slot.room][slot.place], slot.shape)
        return named

    def forms(self) -> dict[str, tf.TensorSpec]:
        """Shapes and dtypes of what `saved` gives."""
        return {
            f"{kind}.{index}": tf.TensorSpec(slot.shape, slot.room.wire)
            for index, slot in enumerate(self.slots)
            for kind in self._kinds()
        }

    def load(self, values: Any) -> None:
        """Take what `saved` gave, by the same names."""
        for index, slot in enumerate(self.slots):
            for kind, flats in self._kinds().items():
                value = tf.reshape(tf.constant(values[f"{kind}.{index}"], slot.room.wire), [-1])
                flats[slot.room][slot.place].assign(value)

    def _kinds(self) -> dict[str, dict[Room, Any]]:
        return {"anchor": self._anchor} | ({"momentum": self._momentum} if self._momentum else {})


def _squared(values: Any) -> Any:
    """The squared norm, a float64 tensor without dimensions."""
    return 2 * tf.cast(tf.nn.l2_loss(values), tf.float64)
