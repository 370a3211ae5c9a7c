"""The outer loop of Algorithm 1 around any Keras optimizer: windows, agreement, synchronisation.

Its counters are variables and its sync is a branch of the graph, so that it runs alike eagerly, in
``tf.function``, in ``fit`` and with several steps an execution, and is saved with the optimizer.
"""

import contextlib
import time
import warnings
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from slowmo_hvd.core.agreement import agree, class_name, figures_of, unequal_start
from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.elastic_job import ONE_STEP, before_run, elastic_job
from slowmo_hvd.core.gathering import Gather, gather_json
from slowmo_hvd.core.names import serial_before_agreeing
from slowmo_hvd.core.outer import PLAIN_AVERAGE, OuterStep, outer_step
from slowmo_hvd.core.records import SyncRecord, SyncStats
from slowmo_hvd.core.roll_call import LARGEST_SQUARE, call_roll, exclusion, mark_of_change
from slowmo_hvd.core.schedule import Schedule, Sync
from slowmo_hvd.tensorflow.buffers import Buffers, resolve_strategy
from slowmo_hvd.tensorflow.context import initialised, traced_for_making_variables
from slowmo_hvd.tensorflow.exchange import (
    average_now,
    critical,
    gather_figures,
    run_now,
    stall_watch,
    sum_,
    sum_now,
)
from slowmo_hvd.tensorflow.leaves import Groups, accumulation_steps
from slowmo_hvd.tensorflow.moving_statistics import average_statistics
from slowmo_hvd.tensorflow.slow_model import SlowModel, SlowVariable, native

_KINDS = (Sync.WARMUP, Sync.WINDOW, Sync.FLUSH)  # by number, for the graph
loops: weakref.WeakSet["OuterLoop"] = weakref.WeakSet()  #: all that live


def loops_of(variables: Sequence[Any]) -> list["OuterLoop"]:
    """The loops whose counters are among these tf.Variables, in the variables' order."""
    by_step = {id(loop._step): loop for loop in loops if loop.built}
    return [by_step[id(variable)] for variable in variables if id(variable) in by_step]


class OuterLoop:
    """Counts local steps, synchronises when the schedule says so, and holds the slow state.

    Call `before_step` and `after_step` around every attempted step of the inner optimizer, on
    every rank of the process set. All collectives of training with Keras start here.
    """

    any_made = False  #: whether there has ever been one in this process

    def __init__(
        self, config: SlowMoConfig, *, compression: Any, process_set: Any, device: str
    ) -> None:
        self.config = config
        self.process_set = process_set
        self.stats = SyncStats()
        self.hooks: OrderedDict[int, Callable[[SyncRecord], None]] = OrderedDict()
        self._compression = compression
        self._device = device
        self._schedule = Schedule(config.sync_period, config.warmup_steps)
        self._agreed = False
        self.built = False
        self._serial: int | None = None
        self._entered = 0.0  # when the sync that is going on began, in seconds
        loops.add(self)
        OuterLoop.any_made = True

    @property
    def member(self) -> bool:
        """Whether this rank trains in the process set; if not, its steps are local for good."""
        return bool(self.process_set.included())

    @property
    def begun(self) -> bool:
        """Whether a step has been taken, here or before these variables were loaded. Eager."""
        return int(self._step) > 0

    def build(self, groups: Groups, add_variable: Callable[..., Any]) -> None:
        """Make the counters and the slow state.

        Args:
            groups: the inner optimizers that take the steps, with the variables of each.
            add_variable: the outer optimizer's.
        """

        def counter(name: str, shape: tuple[int, ...] = (), dtype: str = "int64") -> Any:
            return native(add_variable(shape=shape, dtype=dtype, name=name))

        self._leaves = [leaf for leaf, _ in groups]
        self._passes = accumulation_steps(groups)
        self._attempt = counter("attempt") if self._passes > 1 else None
        self._step = counter("step")
        self._window = counter("window")
        self._position = counter("position")
        self._statistics_at = counter("statistics_at")  # the step after which they were averaged
        # γ of the window so far: its mean over the window's steps, a sum and a count.
        self._lr_total = counter("lr_total", (len(groups),), "float64")
        self._lr_steps = counter("lr_steps")
        self._slow = SlowModel(
            [variables for _, variables in groups],
            add_variable,
            with_momentum=self.config.slow_momentum > 0,
        )
        self._buffers = [
            Buffers(leaf, resolve_strategy(self.config.buffers, leaf), add_variable)
            for leaf in self._leaves
        ]
        self._frozen: tuple[int, ...] = ()  # the positions in `slots` that are not trained
        self._train(self._frozen)
        # What the ranks have agreed to train, as `_key`, for the graphs: 0 before they have.
        self._agreed_key = tf.Variable(0, trainable=False, dtype=tf.int64)
        if elastic_job():
            self._local_steps = tf.Variable(0, trainable=False, dtype=tf.int64)
        self._ready = False
        self._made_in_first_step = not self._can_begin()
        self.built = True

    def _can_begin(self) -> bool:
        """Whether the variables have values: not so in the trace that makes them."""
        if not self._ready and initialised([*(slot.variable for slot in self.slots), self._step]):
            with tf.init_scope():
                for buffers in self._buffers:
                    buffers.look()
            self._ready = True
        return self._ready

    @property
    def slots(self) -> list[SlowVariable]:
        """Every variable's slow state."""
        return self._slow.slots

    def named_variables(self) -> dict[str, Any]:
        """All that is saved, by names that do not hang on those of the model's layers."""
        named = {
            "step": self._step,
            "window": self._window,
            "position": self._position,
            "statistics_at": self._statistics_at,
            "lr_total": self._lr_total,
            "lr_steps": self._lr_steps,
        }
        if self._attempt is not None:
            named["attempt"] = self._attempt
        for index, slot in enumerate(self._slow.slots):
            named[f"anchor.{index}"] = slot.anchor
            if slot.momentum is not None:
                named[f"momentum.{index}"] = slot.momentum
        for index, buffers in enumerate(self._buffers):
            named[f"restarted_at.{index}"] = buffers.restarted_at
        return named

    def begin_afresh(self) -> None:
        """As if no step had been taken, from the weights as they are now."""
        if int(self._step) == 0:
            return
        for variable in self.named_variables().values():
            variable.assign(tf.zeros_like(variable))
        self._slow.anchor_here()
        self._agreed = False

    def anchor_frozen(self) -> None:
        """Have the anchors of frozen variables be their values, as in what is saved. Eager."""
        self._slow.part(self._frozen).anchor_here()

    def learning_rates(self) -> Any:
        """γ of each group now, before its optimizer steps on; a float64 tensor."""
        return tf.stack([tf.cast(leaf.learning_rate, tf.float64) for leaf in self._leaves])

    def before_step(self) -> None:
        """Agree with the other ranks on one start, and anew where other variables are trained.

        Rank-equal: each rank agrees once in its first step, whether its model was built before or
        is in this step; and after a change of what is trained, which every rank makes before the
        same step: one that does so alone finds out in `_meet`. In a graph this runs where the
        graph is made. In the trace that makes the model's variables there is nothing yet to start
        from; the next trace, of the same step, comes here again.
        """
        if not self.member:
            return
        if not self._can_begin():
            traced_for_making_variables()
            return
        with tf.init_scope():
            frozen = self._to_freeze()
            if not self._agreed and before_run():  # rank-equal, see there
                self._train(frozen)
                self._take_name(serial_before_agreeing(self._others))  # for this step's graph
            elif not self._agreed:
                self.agree()
            elif frozen != self._frozen:
                self._change(frozen)

    def _to_freeze(self) -> tuple[int, ...]:
        frozen = self._slow.frozen()
        # With nothing to train Keras refuses the step.
        return frozen if len(frozen) < len(self.slots) else self._frozen

    def after_step(self, learning_rates: Any) -> None:
        """Count one attempted step, taken at these learning rates; synchronise if that is due.

        Rank-equal: counters decide, and an attempt counts whether or not a rank's gradients were
        finite. With gradients that add up, the steps that move variables count.
        """
        if not self.member or not self._ready:
            return
        if self._attempt is None:
            self._count(learning_rates)
            return
        self._attempt.assign_add(1)
        moves = tf.equal(self._attempt % self._passes, 0)
        tf.cond(moves, lambda: self._count(learning_rates), lambda: None)

    def _count(self, learning_rates: Any) -> None:
        counts, refused = self._counts()
        one = tf.cast(counts, tf.int64)
        self._step.assign_add(one)
        warmup = self._schedule.is_warmup(self._step)
        self._position.assign_add(one * (1 - tf.cast(warmup, tf.int64)))
        self._lr_total.assign_add(tf.where(counts, learning_rates, tf.zeros_like(learning_rates)))
        self._lr_steps.assign_add(one)
        due = counts & self._schedule.is_due(self._step, self._position)
        kind = 1 - tf.cast(warmup, tf.int64)
        tf.cond(due | refused, lambda: self._sync(kind), lambda: None)

    def _counts(self) -> tuple[Any, Any]:
        """Whether this step counts, and whether `_enter` is to refuse it: bool tensors.

        It is refused if its graph was made for another choice of what is trained. Before the
        ranks have agreed, in an elastic job, one step does not count, and a second is refused.
        """
        other = tf.not_equal(self._agreed_key, self._key)
        if not elastic_job():
            return tf.constant(True), other
        agreed = tf.not_equal(self._agreed_key, 0)
        local_steps = self._local_steps.assign_add(1 - tf.cast(agreed, tf.int64))
        return agreed, other & (agreed | (local_steps > 1))

    def flush(self) -> None:
        """Synchronise now, unless a window has just begun. Eager only.

        What the steps of this window trained: a layer may be frozen between two steps only.
        """
        if self.member and int(self._position) > 0:
            if not self._agreed:
                self.agree()
            self._sync(tf.constant(_KINDS.index(Sync.FLUSH), tf.int64))

    def average_statistics(self, model: Any) -> None:
        """Average the model's moving statistics, once after each step. A collective, eager.

        Rank-equal: it goes by counters, and by the model, of which every rank has one.
        """
        if self.member and self._agreed and int(self._statistics_at) != int(self._step):
            with stall_watch.waiting(self, "in the average of the moving statistics"):
                average_statistics(
                    model, name=f"{self.name}.statistics", process_set=self.process_set
                )
            self._statistics_at.assign(self._step)

    def average_variables(self, variables: Sequence[Any]) -> None:
        """Make the variables their mean over the workers, and the anchor. A collective, eager."""
        if self.member and self._agreed:
            natives = [native(variable) for variable in variables]
            with stall_watch.waiting(self, "in the average of the averaged weights (EMA)"):
                average_now(natives, name=f"{self.name}.ema", process_set=self.process_set)
            self._slow.anchor_here()

    def agree(self) -> None:
        """Compare what must be equal, and give all ranks the root's anchor. A collective, eager.

        Raises:
            ValueError: the ranks differ; the same error on every rank.
        """
        with self._first_step():
            self._begin(self._to_freeze())

    def agree_after_broadcast(self) -> None:
        """`agree`, on what the root trains: a rank that has just come cannot know that yet."""
        if not self.member:
            return
        with self._first_step():
            gather = self._gather("frozen")
            keys = {rank: int(key) for rank, (key,) in gather([self._key * self._agreed]).items()}
            root = min(keys)
            frozen = self._frozen if keys[root] else self._to_freeze()
            if keys[root] and set(keys.values()) != {keys[root]}:
                frozen = tuple(gather_json(list(self._frozen), gather)[root])
            self._begin(frozen)

    @contextlib.contextmanager
    def _first_step(self) -> Iterator[None]:
        with (
            critical.entered(self, "the first step", unnamed=True),
            stall_watch.waiting(self, "in the first step", warn_after=10),
        ):
            yield

    def _begin(self, frozen: tuple[int, ...]) -> None:
        begun = self.begun
        root = self._agree(frozen)
        self._train(frozen)
        self._slow.part(frozen).begin_afresh()
        self._take_anchor(self._trained, root, begun=begun)
        self._agreed_key.assign(self._key)
        self._agreed, self._made_in_first_step = True, False

    def _train(self, frozen: tuple[int, ...]) -> None:
        """Train all variables but those at these positions."""
        self._frozen = frozen
        self._trained = self._slow.part(set(range(len(self.slots))) - set(frozen))
        self._frozen_ids = _ids(self._slow.part(frozen))
        self._key = 1 + zlib.crc32(repr(frozen).encode())
        self._sync = tf.function(
            partial(self._synchronise, self._trained, self._frozen_ids, self._key),
            autograph=False,
        )

    def _change(self, frozen: tuple[int, ...]) -> None:
        """Agree on another choice of what is trained. A collective, eager.

        What is frozen from here on stays where it is; inside a window, where the workers have
        parted, at their mean. What is trained from here on begins as in a first step. The window
        goes on.

        Raises:
            RuntimeError: some ranks go on as before.
            ValueError: the ranks freeze other variables. Both on every rank alike.
        """
        stopped = self._slow.part(set(frozen) - set(self._frozen))
        started = self._slow.part(set(self._frozen) - set(frozen))
        inside = int(self._position) > 0
        what = f"other variables to train after step {int(self._step)}"
        with (
            critical.entered(self, f"the agreement on {what}", unnamed=True),
            stall_watch.waiting(self, f"to agree on {what}", size=self._bytes(self._trained)),
        ):
            self._meet(stopped if inside else self._slow.part(()))
            root = self._agree(frozen)
            means = [native(slot.variable) for slot in stopped.slots] if inside else []
            for buffers in self._buffers:  # else they would go on to move the weights apart
                means += buffers.averages_of(_ids(stopped))
            average_now(means, name=f"{self.name}.frozen", process_set=self.process_set)
            stopped.begin_afresh()
            started.begin_afresh()
            self._take_anchor(started, root, begun=False)
            self._train(frozen)
            self._agreed_key.assign(self._key)

    def _meet(self, stopped: SlowModel) -> None:
        """Make sure that all ranks are about to change what they train. A collective, eager.

        A rank that is not is in its next sync. So this is the first tensor of that, and from the
        marks in it they all learn who is where. A function runs only what it returns: no more of
        the sync is sent.

        Args:
            stopped: whose mean is taken next; a worker where it is not finite is left out.
        """
        workers = self.process_set.size()
        sound = all(
            bool(tf.reduce_all(tf.math.is_finite(native(slot.variable)))) for slot in stopped.slots
        )
        mark = mark_of_change(int(self._step))
        tail = [0.0] * (workers + 1 + len(self._leaves))
        tail[self.process_set.rank()] = mark if sound else -mark

        def send(tail: Any) -> Any:
            _, marks, _ = sum_(
                self._trained.nothing(),
                tail,
                name=self.name,
                compression=self._compression,
                process_set=self.process_set,
                device=self._device,
            )
            return marks[:workers]

        marks = run_now(send, tf.constant(tail, tf.float64)).numpy().tolist()
        with critical.alike():
            roll = call_roll(marks, self.process_set.ranks, self.config.on_nonfinite)
        if roll.excluded:
            warnings.warn(exclusion(roll.excluded, int(self._step)), stacklevel=2)

    def _gather(self, what: str) -> Gather:
        name = f"slowmo.{self.process_set.process_set_id}.{what}"
        return partial(gather_figures, name=name, process_set=self.process_set)

    def _agree(self, frozen: tuple[int, ...]) -> int:
        """Compare what must be equal, and this choice of what is not trained; return the root."""
        schedule = Schedule(
            self.config.sync_period,
            self.config.warmup_steps,
            step=int(self._step),
            window=int(self._window),
            position=int(self._position),
        )
        slots = self._slow.slots
        parameters = [
            [
                (tuple(slot.variable.shape), native(slot.variable).dtype.name)
                for slot in slots
                if slot.group == group
            ]
            for group in range(len(self._leaves))
        ]
        figures = figures_of(
            self.config,
            schedule,
            has_slow_state=self.begun,
            compression=class_name(self._compression),
            groups=parameters,
            frozen=[f"number {i}, {list(slots[i].anchor.shape)}" for i in frozen],
            gradients_per_step=self._passes,
            buffers=[buffers.averaged_kinds for buffers in self._buffers],
        )
        with critical.alike():
            root, serial = agree(figures, self._gather("figures"), self._serial, self._others)
        self._take_name(serial)
        return root

    def _others(self) -> list[int | None]:
        return [loop._serial for loop in loops if loop is not self]

    def _take_name(self, serial: int) -> None:
        self._serial = serial
        self.name = f"slowmo.{self.process_set.process_set_id}.{serial}"

    def _take_anchor(self, slow: SlowModel, root: int, *, begun: bool) -> None:
        """Anchor these variables at the root's values, those that had an anchor at its anchor."""
        if not begun:
            slow.anchor_here()
        ours = slow.anchors()
        mine = hvd.rank() == root
        with stall_watch.sending(self, "in sending the first weights", size=self._bytes(slow)):
            flats = [
                sum_now(
                    flat if mine else tf.zeros_like(flat),
                    name=f"{self.name}.anchor.{index}",
                    process_set=self.process_set,
                )
                for index, flat in enumerate(ours)
            ]
        gaps = [
            float(tf.reduce_max(tf.abs(a - b)))
            for a, b in zip(flats, ours, strict=True)
            if a.shape[0]
        ]
        # No one could broadcast weights that the first step makes.
        if any(gap != 0 for gap in gaps) and not self._made_in_first_step:  # a NaN too
            warnings.warn(unequal_start(hvd.rank(), root, max(gaps)), stacklevel=2)
        slow.set_anchors(flats)
        if not begun:
            slow.restart()
            for buffers in self._buffers:
                buffers.follow(of=_ids(slow), at_start=not self.begun)

    def _bytes(self, slow: SlowModel) -> int:
        """What its displacements have on the wire."""
        if self.process_set.size() == 1:
            return 0
        return sum(slot.nbytes for slot in slow.slots)

    def _synchronise(self, slow: SlowModel, frozen: set[int], key: int, kind: Any) -> None:
        """Average the displacements, take the outer step, begin a window. A collective.

        Args:
            slow: what is trained.
            frozen: the tf.Variables that are not, by id.
            key: which stands for the two.
            kind: the index in _KINDS, an int64 tensor.
        """
        flats, tail, sound, workers = self._outgoing(slow, frozen, key)
        roll: list[Any] = []

        def check(tail: Any) -> Any:
            roll.append(_call(self._call_roll, [tail[:workers]], tf.float64))
            return roll[0]

        sums, tail, sent = sum_(
            flats,
            tail,
            name=self.name,
            compression=self._compression,
            process_set=self.process_set,
            device=self._device,
            check=check,
        )
        marks, squares = tail[:workers], tail[workers]
        rates = tf.ensure_shape(tail[workers + 1 :], [len(self._leaves)])
        contributors = tf.ensure_shape(roll[0], [])
        with tf.control_dependencies([contributors]):  # nothing changes if it raises
            gammas = tf.unstack(rates / contributors)
            warmup = tf.equal(kind, _KINDS.index(Sync.WARMUP))
            steps = [self._coefficients(gamma, warmup) for gamma in gammas]
            slow.apply(sums, contributors, steps)
            norm = tf.sqrt(_squared_norm(sums)) / contributors
            sent += self._begin_buffers(sound, frozen)
            record = [
                kind,
                tf.identity(self._step),
                tf.identity(self._window),
                marks,
                tf.stack(gammas),
                norm,
                tf.sqrt(tf.maximum(squares / contributors - norm**2, 0.0)),
                sent,
            ]
            self._window.assign_add(1 - tf.cast(warmup, tf.int64))
            self._position.assign(0)
            self._lr_total.assign(tf.zeros_like(self._lr_total))
            self._lr_steps.assign(0)
            # The end of the clock and the hooks come after the variables have their new values.
            values = [native(slot.variable).read_value() for slot in slow.slots]
        with tf.control_dependencies(values):
            _call(self._record, record, [])

    def _outgoing(
        self, slow: SlowModel, frozen: set[int], key: int
    ) -> tuple[list[Any], Any, Any, Any]:
        """This worker's displacements, the figures that travel with them, and who sends them.

        The figures: a mark for each worker, as `slowmo_hvd.core.roll_call` has it; ‖d‖²; γ of
        each group. A worker that is not sound sends zeros, but for its mark.

        Returns:
            The displacements, the figures, whether this worker is sound, and the number of
            workers. Tensors all, since in elastic training a graph outlives their number.
        """
        arguments = [self._step, tf.constant(key, tf.int64)]
        place, workers = _call(self._enter, arguments, [tf.int64, tf.int64])
        place, workers = tf.ensure_shape(place, []), tf.ensure_shape(workers, [])
        with tf.control_dependencies([place]):  # they belong to the sync's time
            flats = slow.displacements()
        squares = _squared_norm(flats)
        rates = self._lr_total / _double(tf.maximum(self._lr_steps, 1))
        sound = (squares <= LARGEST_SQUARE) & tf.reduce_all(tf.math.is_finite(rates))
        for buffers in self._buffers:
            if buffers.strategy == "average":
                # Not their norm: Adam's second moments have no squares in float32.
                for flat in buffers.flats(frozen):
                    sound &= tf.math.is_finite(tf.reduce_sum(flat))
        flats = _or_zeros(sound, flats)
        figures = tf.concat([squares[None], rates], 0)
        figures = tf.where(sound, figures, tf.zeros_like(figures))
        step = _double(self._step)
        marks = tf.one_hot(
            place, tf.cast(workers, tf.int32), tf.where(sound, step, -step), _double(0.0)
        )
        return flats, tf.concat([marks, figures], 0), sound, workers

    def _enter(self, step: Any, key: Any) -> tuple[int, int]:
        """This worker's place, and how many there are; or an error before anything is sent.

        The clock of the sync begins, which is not tf.timestamp: TensorFlow refuses that under
        ``tf.config.experimental.enable_op_determinism()``.
        """
        self._entered = time.perf_counter()
        critical.check(self)
        if int(self._agreed_key) == 0:
            raise RuntimeError(ONE_STEP)
        if int(key) != self._key:
            raise RuntimeError(
                "this training step was made when other variables were trained: after freezing or "
                "thawing layers compile the model again, or make the tf.function anew"
            )
        size = self._bytes(self._trained)
        stall_watch.begin(self, f"in the sync after step {int(step)}", size=size)
        return self.process_set.rank(), self.process_set.size()

    def _call_roll(self, marks: Any) -> float:
        """The number of contributors; or the errors of `call_roll`, alike on every rank."""
        try:
            roll = call_roll(
                marks.numpy().tolist(), self.process_set.ranks, self.config.on_nonfinite
            )
        except Exception:
            stall_watch.end(self)
            raise
        return float(roll.contributors)

    def _coefficients(self, gamma: Any, warmup: Any) -> OuterStep:
        step = outer_step(self.config, gamma, _where)
        pairs = zip(PLAIN_AVERAGE, step, strict=True)
        return OuterStep(*(_where(warmup, plain, slow) for plain, slow in pairs))

    def _begin_buffers(self, sound: Any, frozen: set[int]) -> Any:
        """Line 2 of Algorithm 1; return the bytes sent.

        Rank-equal but for a worker that is not sound, which resets its buffers and sends none: it
        goes by the strategies and the schedule.
        """
        sent = tf.zeros([], tf.int64)
        begins_window = tf.greater_equal(self._step, self.config.warmup_steps)
        for index, buffers in enumerate(self._buffers):
            if buffers.strategy == "reset":
                tf.cond(begins_window, buffers.reset, lambda: None)
            tf.cond(sound, lambda: None, buffers.forget)
            if buffers.strategy == "average":
                name = f"{self.name}.buffers.{index}"
                sent += self._average(buffers, name, sound, frozen)
            buffers.follow()
        return sent

    def _average(self, buffers: Buffers, name: str, sound: Any, frozen: set[int]) -> Any:
        """Make the buffers of all sound workers their mean; return the bytes sent."""
        own = buffers.flats(frozen)
        if not own:
            return tf.zeros([], tf.int64)
        sums, tail, sent = sum_(
            _or_zeros(sound, own),
            tf.cast(sound, tf.float64)[None],
            name=name,
            compression=hvd.Compression.none,  # Adam divides by what half precision rounds to 0
            process_set=self.process_set,
            device=self._device,
        )
        means = [total / tf.cast(tail[0], total.dtype) for total in sums]
        buffers.set_flats(tf.cond(sound, lambda: means, lambda: own), frozen)
        return sent

    def _record(self, *values: Any) -> None:
        """Keep the record of a sync, warn of workers that were left out, call the hooks."""
        seconds = time.perf_counter() - self._entered
        stall_watch.end(self)
        kind, step, window, marks, gammas, norm, drift, sent = (value.numpy() for value in values)
        roll = call_roll(marks.tolist(), self.process_set.ranks, self.config.on_nonfinite)
        record = SyncRecord(
            kind=_KINDS[int(kind)],
            step=int(step),
            window=int(window),
            workers=roll.contributors,
            learning_rates=tuple(map(float, gammas)),
            bytes=int(sent) if self.process_set.size() > 1 else 0,
            seconds=seconds,
            displacement_norm=float(norm),
            drift=float(drift),
            excluded=roll.excluded,
        )
        self.stats = self.stats.add(record)
        if roll.excluded:
            warnings.warn(exclusion(roll.excluded, record.step), stacklevel=1)
        for hook in list(self.hooks.values()):
            hook(record)


def _ids(slow: SlowModel) -> set[int]:
    """Its tf.Variables, by id."""
    return {id(native(slot.variable)) for slot in slow.slots}


def _or_zeros(sound: Any, flats: Sequence[Any]) -> Any:
    """The flat tensors as they are where ``sound``, without a pass over them."""
    return tf.cond(sound, lambda: list(flats), lambda: [tf.zeros_like(flat) for flat in flats])


def _call(method: Callable[..., Any], arguments: Sequence[Any], returns: Any) -> Any:
    """Have the graph call a method, by a reference that does not keep its object alive.

    TensorFlow keeps for good what a ``tf.py_function`` calls.
    """
    weak = weakref.WeakMethod(method)

    def call(*values: Any) -> Any:
        alive = weak()
        if alive is None:
            raise RuntimeError(
                "the DistributedOptimizer of this graph is gone: keep a reference to it for as "
                "long as its training step runs"
            )
        return alive(*values)

    return tf.py_function(call, arguments, returns)


def _double(value: Any) -> Any:
    # tf.cast would make a float32 of a Python number first.
    return (
        tf.constant(value, tf.float64) if isinstance(value, float) else tf.cast(value, tf.float64)
    )


def _where(condition: Any, yes: Any, no: Any) -> Any:
    return tf.where(condition, _double(yes), _double(no))


def _squared_norm(flats: Sequence[Any]) -> Any:
    """The squared Euclidean norm over all flat tensors, a float64 tensor."""
    return tf.add_n([_double(0.0), *(2 * _double(tf.nn.l2_loss(flat)) for flat in flats)])
