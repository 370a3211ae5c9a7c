"""The inner optimizers' buffers through the syncs: line 2 of Algorithm 1."""

from collections.abc import Collection, Iterator
from typing import Any

import tensorflow as tf

from slowmo_hvd.core.average import NoCrossing
from slowmo_hvd.core.pipeline import Load
from slowmo_hvd.core.roll_call import RollCall
from slowmo_hvd.tensorflow.buffers import Buffers, Fragment
from slowmo_hvd.tensorflow.means import sums
from slowmo_hvd.tensorflow.transport import Transport


class Inner:
    """See `slowmo_hvd.core.ports.Inner`. The buffers exist from the start, so there is never news.

    Attributes:
        buffers: the buffers of each inner optimizer that updates variables.
        frozen: the ids of the tf.Variables that are not trained, whose buffers do not travel.
    """

    def __init__(self, transport: Transport, bucket_bytes: int) -> None:
        self.buffers: list[Buffers] = []
        self.frozen: set[int] = set()
        self.transport = transport
        self.bucket_bytes = bucket_bytes

    def variables(self) -> list[Any]:
        """The tf.Variables that a sync may read or write."""
        return [variable for buffers in self.buffers for variable in buffers.touched()]

    def averaged(self, fragment: Fragment) -> list[Any]:
        """The tf.Variables that are averaged in a sync."""
        averaging = (buffers for buffers in self.buffers if buffers.strategy == "average")
        return [
            buffer
            for buffers in averaging
            for buffer in buffers.of(fragment)
            if buffers.owner(buffer) not in self.frozen
        ]

    def finite(self) -> bool:
        """Whether everything that this worker would send is finite."""
        # Sums and not norms: the squares of Adam's second moments do not fit float32.
        sums_ = [tf.cast(tf.reduce_sum(buffer), tf.float64) for buffer in self.averaged(None)]
        return bool(tf.reduce_all(tf.math.is_finite(sums_))) if sums_ else True

    def has_news(self) -> bool:
        """Return False."""
        return False

    def cross(
        self, slow: Any, fragments: Collection[int], *, sound: bool, opens_window: bool
    ) -> "_Crossing":
        """Begin a sync."""
        fragment = None if len(fragments) == len(slow.parts) else slow.variables_in(fragments)
        return _Crossing(self, fragment, sound=sound, opens_window=opens_window)

    def stop(self, slow: Any, *, sound: bool) -> NoCrossing:
        """Begin when variables stop being trained: only copies of the weights follow."""
        return NoCrossing(sound)


class _Crossing:
    """The inner optimizers' part in one sync."""

    changed = False

    def __init__(
        self, inner: Inner, fragment: Fragment, *, sound: bool, opens_window: bool
    ) -> None:
        self._inner = inner
        self._fragment = fragment
        self._sound = sound
        self._opens_window = opens_window

    def loads(self, roll: RollCall, name: str, *, news: bool) -> Iterator[Load]:
        """Set the buffers of sound workers, and only theirs, to the mean over these workers."""
        variables = self._inner.averaged(self._fragment)

        def land(index: int, total: Any) -> None:
            if self._sound:
                mean = total / roll.contributors
                variables[index].assign(tf.cast(mean, variables[index].dtype))

        given = range(len(variables)) if self._sound else ()
        return sums(variables, given, land, self._inner.bucket_bytes)

    def end(self) -> None:
        for buffers in self._inner.buffers:
            if buffers.strategy == "reset" and self._opens_window:
                buffers.reset(self._fragment)
            if not self._sound:
                buffers.forget()
            buffers.follow(of=self._fragment)
