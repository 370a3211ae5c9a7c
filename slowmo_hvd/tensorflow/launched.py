"""The slow state when local steps go on while an average is under way."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import tensorflow as tf

from slowmo_hvd.core.buckets import Bucket
from slowmo_hvd.tensorflow.flat import Flat
from slowmo_hvd.tensorflow.native import native
from slowmo_hvd.tensorflow.rooms import Room, SlowVariable, flat_tensor
from slowmo_hvd.tensorflow.tensors import SlowModel


class OverlappedModel(SlowModel):
    """A slow model whose averages are launched and land, with one more copy of the variables."""

    def __init__(self, groups: Any, add_variable: Callable[..., Any], **settings: Any) -> None:
        """Make room for the slow state, as in `SlowModel`, and for the values at a launch."""
        super().__init__(groups, add_variable, **settings)
        fragments = range(len(self.parts))
        self.launched = [Launched(self, fragment, add_variable) for fragment in fragments]

    def train(self, frozen: Collection[int]) -> None:
        """Synchronise all variables except those at these positions."""
        before = self.plan
        super().train(frozen)
        if self.plan is not before:
            for launched in self.launched:
                launched.train_as(self)

    def launch(self, fragment: int) -> "Launched":
        """Remember where x^i is; return an object with the displacements from there."""
        launched: Launched = self.launched[fragment]
        launched.remember()
        return launched

    def return_to_anchor(self, fragment: int) -> None:
        """Set x^i back to x_{t,0}."""
        for bucket in self.buckets_of(fragment):
            self._restart(bucket)
        self.launched[fragment].remember()

    def land(self, fragment: int) -> None:
        """x^i ← x_{t+1,0} + (x^i - x^i at the launch)."""
        launched = self.launched[fragment]
        for bucket in self.buckets_of(fragment):
            land = partial(self._restart, since=launched)
            (self._graph if self._bound(bucket) else self._often)(land, bucket, "land")()
        self.drop(fragment)

    def drop(self, fragment: int) -> None:
        """Forget a launch. Its variables stay, as zeros, and are the same on all ranks again."""
        self.launched[fragment].forget()


class Launched(SlowModel):
    """x^i of one fragment as it was when its average was launched, while local steps go on.

    See `slowmo_hvd.core.ports.Slow`: its outer steps change only anchor and momentum. Another
    thread can use it.
    """

    def __init__(self, slow: SlowModel, fragment: int, add_variable: Callable[..., Any]) -> None:
        vars(self).update(vars(slow))
        self.positions = slow.parts[fragment]
        self._flats: dict[Room, Flat] = {}
        self._begins: dict[Room, int] = {}
        for room in slow.plan.sizes:
            places = [s.place for s in (slow.slots[p] for p in self.positions) if s.room == room]
            if places:  # end to end
                self._begins[room] = places[0].start
                size, name = places[-1].stop - places[0].start, f"{room.dtype}_launched_{fragment}"
                self._flats[room] = Flat(size, room.dtype, name, add_variable)
        self._remembers = tf.function(self._remember, autograph=False)
        self._graphs, self._calls = {}, {}

    def train_as(self, slow: SlowModel) -> None:
        """Use the buckets of ``slow``."""
        self.plan, self._graphs, self._calls = slow.plan, {}, {}

    def remember(self) -> None:
        """Take the variables' values."""
        self._remembers()

    def forget(self) -> None:
        """Set the values to zeros."""
        for flat in self._flats.values():
            for variable in flat.variables:
                variable.assign(tf.zeros_like(variable))

    def _remember(self) -> None:
        for room, flat in self._flats.items():
            slots = [self.slots[p] for p in self.positions if self.slots[p].room == room]
            values = tf.concat([tf.reshape(native(slot.variable), [-1]) for slot in slots], 0)
            flat.write([(slice(0, values.shape[0]), values)])

    def at_launch(self, slot: SlowVariable) -> Any:
        """One variable's values at the launch, flat."""
        return self._flats[slot.room].read(self._inside(slot))

    def steps_of(self, slot: SlowVariable) -> Any:
        """How far a variable has moved since the launch, flat."""
        now = tf.cast(tf.reshape(native(slot.variable), [-1]), slot.room.wire)
        return now - tf.cast(self.at_launch(slot), slot.room.wire)

    def set_at_launch(self, values: Any) -> None:
        """Take the values at the launch from what `saved` gave, by the same names."""
        for room, flat in self._flats.items():
            flat.write(
                (self._inside(slot), flat_tensor(values[f"launched.{position}"], room.dtype))
                for position, slot in ((p, self.slots[p]) for p in self.positions)
                if slot.room == room
            )

    def _inside(self, slot: SlowVariable) -> slice:
        begin = self._begins[slot.room]
        return slice(slot.place.start - begin, slot.place.stop - begin)

    def _read(self, room: Room, start: int, stop: int) -> Any:
        begin = self._begins[room]
        return self._flats[room].read(slice(start - begin, stop - begin))

    def _pieces(self, bucket: Bucket) -> list[Any]:
        return [self._read(bucket.room, run.start, run.stop) for run in bucket.runs]

    def _restart(self, bucket: Bucket, since: Any = None) -> None:
        """Do nothing: these are the values at the launch."""
