"""The slow state: anchor x_{t,0} and slow momentum u_t of every variable, and the outer step.

Memory in units of the variables at float32: one for the anchor and, where β > 0, one for the
momentum; and two for the displacements and their sum while a sync lasts.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from slowmo_hvd.core.outer import OuterStep


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


class SlowVariable(NamedTuple):
    """One variable of the model and its slow state."""

    variable: Any  #: as the optimizer got it, a Keras variable or a tf.Variable
    group: int  #: which learning rate it has
    anchor: Any  #: tf.Variable
    momentum: Any  #: tf.Variable, or None where β = 0

    @property
    def size(self) -> int:
        """Elements."""
        return int(self.anchor.shape.num_elements())

    @property
    def nbytes(self) -> int:
        """What its displacement has on the wire."""
        return self.size * int(self.anchor.dtype.size)


class SlowModel:
    """Anchor and slow momentum of all variables, and the arithmetic of one outer step.

    Holds no counters, knows no schedule and never communicates: the outer loop asks it for the
    displacements, has them summed over the workers, and gives the sums back to `apply`.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Any]],
        add_variable: Callable[..., Any],
        *,
        with_momentum: bool,
    ) -> None:
        """Make room for the slow state.

        Args:
            groups: the variables of each learning rate.
            add_variable: the optimizer's, so that it saves, loads and broadcasts the slow state.
            with_momentum: whether there is a u to keep, that is β > 0.

        Raises:
            ValueError: a variable is not of floating point.
        """
        for variable in (variable for group in groups for variable in group):
            dtype = native(variable).dtype
            if not dtype.is_floating:
                raise ValueError(
                    f"{path_of(variable)} is {dtype.name}, and only floating-point variables can "
                    "be averaged; give it an optimizer of its own that is not distributed"
                )

        def add(variable: Any, name: str) -> Any:
            # Always initialised with zeros: the anchor is taken when the first step begins.
            return native(
                add_variable(
                    shape=variable.shape,
                    dtype=slow_dtype(variable),
                    name=f"{path_of(variable)}_{name}",
                )
            )

        slots = [
            SlowVariable(
                variable,
                index,
                add(variable, "anchor"),
                add(variable, "slow_momentum") if with_momentum else None,
            )
            for index, group in enumerate(groups)
            for variable in group
        ]
        self._buckets = _by_dtype(slots)

    def part(self, positions: Collection[int]) -> "SlowModel":
        """The variables at these positions in `slots` alone; the same state, and no copy."""
        part = copy.copy(self)
        slots = self.slots
        part._buckets = _by_dtype(slots[position] for position in sorted(positions))
        return part

    def frozen(self) -> tuple[int, ...]:
        """The positions of the variables whose ``trainable`` is False now."""
        return tuple(i for i, slot in enumerate(self.slots) if not slot.variable.trainable)

    @property
    def slots(self) -> list[SlowVariable]:
        """Every variable's, in the order of the wire."""
        return [slot for bucket in self._buckets for slot in bucket]

    def displacements(self) -> list[Any]:
        """d^i = x_{t,0} - x^i of this worker, flat, one tensor a dtype.

        Half-precision variables started the window from the anchor rounded to their dtype, so
        that is what their displacement is measured from: the rounding is no progress of theirs,
        and the float32 anchor keeps what is too small for them to show.
        """
        return [_flat(map(_displacement, bucket)) for bucket in self._buckets]

    def apply(self, sums: Sequence[Any], workers: Any, steps: Sequence[OuterStep]) -> None:
        """The outer step from the displacements' sum over ``workers``; then x^i = x_{t+1,0}.

        Args:
            sums: the displacements, summed over the workers.
            workers: how many workers are in the sums, a float64 tensor.
            steps: the coefficients of each group, float64 tensors.
        """
        for slot, total in self._parts(sums):
            step, carry, decay, gain = (
                tf.cast(value, slot.anchor.dtype)
                for value in _per_worker(steps[slot.group], workers)
            )
            _subtract(slot.anchor, step, total)
            if slot.momentum is not None:
                _subtract(slot.anchor, carry, slot.momentum)
                slot.momentum.assign(decay * slot.momentum)
                _subtract(slot.momentum, -gain, total)
        self.restart()

    def restart(self) -> None:
        """Put every variable to its anchor: there it begins a window.

        A variable's constraint holds after the slow step as after every local one, and binds the
        anchor with it; it comes out equal on every rank, since the anchor is.
        """
        for slot in self.slots:
            variable = native(slot.variable)
            constraint = getattr(slot.variable, "constraint", None)
            if constraint is not None:
                bounded = constraint(tf.cast(slot.anchor, variable.dtype))
                slot.anchor.assign(tf.cast(bounded, slot.anchor.dtype))
            variable.assign(tf.cast(slot.anchor, variable.dtype))

    def nothing(self) -> list[Any]:
        """The `displacements` of a worker that adds nothing."""
        return [
            tf.zeros([sum(slot.size for slot in bucket)], bucket[0].anchor.dtype)
            for bucket in self._buckets
        ]

    def anchor_here(self) -> None:
        """Take the variables' values as the anchor."""
        for slot in self.slots:
            slot.anchor.assign(tf.cast(native(slot.variable), slot.anchor.dtype))

    def begin_afresh(self) -> None:
        """`anchor_here`, without a slow momentum."""
        self.anchor_here()
        for slot in self.slots:
            if slot.momentum is not None:
                slot.momentum.assign(tf.zeros_like(slot.momentum))

    def anchors(self) -> list[Any]:
        """All anchors, flat, one tensor a dtype."""
        return [_flat(slot.anchor for slot in bucket) for bucket in self._buckets]

    def set_anchors(self, flats: Sequence[Any]) -> None:
        """Take what `anchors` returned, here or on another rank."""
        for slot, part in self._parts(flats):
            slot.anchor.assign(part)

    def _parts(self, flats: Sequence[Any]) -> Iterator[tuple[SlowVariable, Any]]:
        """Every slot with its part of the flat tensors, in its shape."""
        for bucket, flat in zip(self._buckets, flats, strict=True):
            start = 0
            for slot in bucket:
                yield slot, tf.reshape(flat[start : start + slot.size], slot.anchor.shape)
                start += slot.size


def _by_dtype(slots: Iterable[SlowVariable]) -> list[list[SlowVariable]]:
    """The buckets: one flat tensor travels for each dtype."""
    by_dtype: dict[Any, list[SlowVariable]] = {}
    for slot in slots:
        by_dtype.setdefault(slot.anchor.dtype, []).append(slot)
    return list(by_dtype.values())


def _displacement(slot: SlowVariable) -> Any:
    variable = native(slot.variable)
    start = tf.cast(tf.cast(slot.anchor, variable.dtype), slot.anchor.dtype)
    return start - tf.cast(variable, slot.anchor.dtype)


def _flat(tensors: Iterator[Any]) -> Any:
    return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0)


def _per_worker(step: OuterStep, workers: Any) -> OuterStep:
    """The coefficients that apply to a sum over ``workers`` in place of the mean."""
    return step._replace(step=step.step / workers, gain=step.gain / workers)


def _subtract(variable: Any, factor: Any, tensor: Any) -> None:
    """``variable -= factor * tensor``, in place and without a temporary."""
    tf.raw_ops.ResourceApplyGradientDescent(
        var=variable.handle, alpha=factor, delta=tf.convert_to_tensor(tensor)
    )
