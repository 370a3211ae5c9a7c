"""One Keras optimizer's training: the engine between its steps, eagerly and in graphs.

A sync is a branch of the graph that counts the steps. In this branch Python takes over: the engine
runs in its own thread, and the graph waits for it.
"""

import contextlib
import itertools
import weakref
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from slowmo_hvd.core.agreement import class_name, figures_of, unequal_start
from slowmo_hvd.core.buckets import total_bytes
from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.elastic_job import ONE_STEP, before_run, elastic_job
from slowmo_hvd.core.engine import Engine
from slowmo_hvd.core.gathering import gather_json
from slowmo_hvd.core.pace import refuse_few
from slowmo_hvd.core.peers import Peer, take_anchor
from slowmo_hvd.core.roll_call import frozen_without
from slowmo_hvd.core.schedule import in_flight
from slowmo_hvd.core.warn import warn
from slowmo_hvd.tensorflow.buffers import Buffers, check_pace, check_strategy
from slowmo_hvd.tensorflow.context import initialised, traced_for_making_variables
from slowmo_hvd.tensorflow.counters import Counters
from slowmo_hvd.tensorflow.in_graph import InGraph, in_order
from slowmo_hvd.tensorflow.inner import Inner
from slowmo_hvd.tensorflow.launched import OverlappedModel
from slowmo_hvd.tensorflow.leaves import Groups, accumulation_steps
from slowmo_hvd.tensorflow.means import average
from slowmo_hvd.tensorflow.moving_statistics import statistics_of
from slowmo_hvd.tensorflow.native import native
from slowmo_hvd.tensorflow.rooms import SlowVariable
from slowmo_hvd.tensorflow.tensors import SlowModel
from slowmo_hvd.tensorflow.transport import Transport, stall_watch

_all: weakref.WeakSet["Training"] = weakref.WeakSet()  # all that exist


def trainings_of(variables: Sequence[Any]) -> list["Training"]:
    """The trainings whose counters are among these tf.Variables, in the variables' order."""
    by_step = {id(training.counters.step): training for training in _all if training.built}
    return [by_step[id(variable)] for variable in variables if id(variable) in by_step]


class Training:
    """Counts local steps, synchronises when the schedule says so, and holds the slow state.

    Call `before_step` and `after_step` around every attempted step of the inner optimizer, on every
    rank of the process set. All collectives of training with Keras start here.

    Attributes:
        engine: synchronises; its counters are set from the variables before each sync.
        built: whether there are variables.
    """

    any_made = False  #: whether there has ever been one in this process

    def __init__(
        self, config: SlowMoConfig, *, compression: Any, process_set: Any, device: str
    ) -> None:
        self._compression = compression
        none = compression is hvd.Compression.none
        self._transport = Transport(process_set, None if none else compression, device)
        self.inner = Inner(self._transport, config.bucket_bytes)
        self.engine = Engine(config, self._transport, self.inner, 0)
        self._agreed = False
        self.built = False
        self._peer = Peer()
        _all.add(self)
        Training.any_made = True

    @property
    def config(self) -> SlowMoConfig:
        """The user's settings."""
        return self.engine.config

    @property
    def process_set(self) -> Any:
        """The ranks that train together."""
        return self._transport.process_set

    @property
    def member(self) -> bool:
        """Whether this rank trains in the process set. If not, all its steps are local."""
        return self._transport.member

    @property
    def begun(self) -> bool:
        """Whether a step has been taken, here or before these variables were loaded. Eager."""
        return int(self.counters.step) > 0

    def build(self, groups: Groups, add_variable: Callable[..., Any]) -> None:
        """Make the counters and the slow state.

        Args:
            groups: the inner optimizers that take the steps, with the variables of each.
            add_variable: the outer optimizer's method.
        """
        self._leaves = [leaf for leaf, _ in groups]
        self._passes = accumulation_steps(groups)
        self.counters = Counters(self.config, len(groups), self._passes, add_variable)
        self.engine.counters = self.counters
        model = OverlappedModel if self.config.overlap_steps else SlowModel
        self._slow = model(
            [variables for _, variables in groups],
            add_variable,
            with_momentum=self.config.has_momentum,
            bucket_bytes=self.config.bucket_bytes,
            fragments=self.config.fragments,
        )
        strategy = self.config.buffers
        for leaf in self._leaves:
            check_strategy(strategy, leaf)
        self.inner.buffers = [Buffers(leaf, strategy, add_variable) for leaf in self._leaves]
        for leaf in self._leaves:
            check_pace(leaf, self.config)
        refuse_few(self.config, len(self.slots), "variables")
        self.engine.slow = self._slow
        self._frozen: tuple[int, ...] = ()  # the positions in `slots` that are not trained
        self._train(self._frozen)
        # `_key` of what the ranks have agreed to train, for the graphs; 0 before they have agreed.
        self._agreed_key = tf.Variable(0, trainable=False, dtype=tf.int64)
        if elastic_job():
            self._local_steps = tf.Variable(0, trainable=False, dtype=tf.int64)
        self._in_graph = InGraph(self._check, self._work)
        self._ready = False
        self._made_in_first_step = not self._can_begin()
        self.built = True

    def _can_begin(self) -> bool:
        """Whether the variables have values. They have none in the trace that makes them."""
        made = [*(slot.variable for slot in self.slots), self.counters.step]
        if not self._ready and initialised(made):
            with tf.init_scope():
                for buffers in self.inner.buffers:
                    buffers.look()
            self._ready = True
        return self._ready

    @property
    def slots(self) -> list[SlowVariable]:
        """The slow state of every variable."""
        return self._slow.slots

    # ---- what is saved -------------------------------------------------------------------

    def _saved(self) -> dict[str, Any]:
        """What is saved besides anchors and momenta, as tf.Variables."""
        restarts = (buffers.restarted_at for buffers in self.inner.buffers)
        return self.counters.named() | {f"restarted_at.{i}": at for i, at in enumerate(restarts)}

    def to_save(self) -> Iterator[tuple[str, Any]]:
        """Everything that is saved, with names that do not depend on those of the model's layers.

        The anchors of frozen variables are saved as the variables' values. Eager. The values are
        produced one by one, so that they are not all in memory.

        Raises:
            RuntimeError: a sync failed partway, so the state is not that of any step.
        """
        self.engine.settle()
        self._slow.anchor_here(self._frozen)
        return itertools.chain(
            self._saved().items(), self._slow.saved(in_flight(self.counters.landing.numpy()))
        )

    def forms(self, under_way: Collection[int] = ()) -> dict[str, tf.TensorSpec]:
        """Shapes and dtypes of what `to_save` gives, with averages of these fragments under way."""
        counters = {name: tf.TensorSpec(v.shape, v.dtype) for name, v in self._saved().items()}
        return counters | self._slow.forms(under_way)

    def load(self, arrays: Any) -> None:
        """Take over what `to_save` gave."""
        self.engine.mend()
        for name, variable in self._saved().items():
            variable.assign(arrays[name])
        self._slow.load(arrays, in_flight(arrays["landing"]))

    def begin_afresh(self) -> None:
        """Go back to no step taken, from the weights as they are now."""
        self.engine.mend()
        if int(self.counters.step) == 0:
            return
        self.counters.begin_afresh()
        for buffers in self.inner.buffers:
            buffers.restarted_at.assign(tf.zeros_like(buffers.restarted_at))
        self._slow.begin_afresh(range(len(self.slots)))
        self._agreed = False

    # ---- steps ---------------------------------------------------------------------------

    def learning_rates(self) -> Any:
        """γ of each group now, before its optimizer takes the step; a float64 tensor."""
        return tf.stack([tf.cast(leaf.learning_rate, tf.float64) for leaf in self._leaves])

    def before_step(self) -> None:
        """Agree with the other ranks on one start, and again if other variables are trained.

        All ranks agree together. Each rank agrees once in its first step, whether its model was
        built before or is built in this step. It agrees again after a change of what is trained,
        which every rank makes before the same step; a rank that makes it alone gets an error in
        `Engine.meet`. In a graph this runs when the graph is made. In the trace that makes the
        model's variables there is nothing to start from yet. The next trace, of the same step,
        comes here again.
        """
        if not self.member:
            return
        if not self._can_begin():
            traced_for_making_variables()
            return
        with tf.init_scope():
            self.engine.check()
            frozen = self._to_freeze()
            if not self._agreed and before_run():  # equal on every rank, see there
                self._train(frozen)
            elif not self._agreed:
                self.agree()
            elif frozen != self._frozen:
                self._change(frozen)

    def _to_freeze(self) -> tuple[int, ...]:
        frozen = self._slow.frozen()
        # If there is nothing to train, Keras refuses the step.
        return frozen if len(frozen) < len(self.slots) else self._frozen

    def after_step(self, learning_rates: Any) -> None:
        """Count one attempted step, taken at these learning rates; synchronise if that is due.

        It is equal on every rank: counters decide, and an attempt counts whether or not a rank's
        gradients were finite. If gradients add up, only the steps that move variables count.
        """
        if not self.member or not self._ready:
            return
        self.counters.if_a_step(partial(self._count, learning_rates))

    def _count(self, learning_rates: Any) -> None:
        counts, refused = self._counts()
        acts = self.counters.count(self.engine.schedule, learning_rates, counts)
        with in_order(self._touched()):
            tf.cond(acts | refused, self._act, lambda: None)

    def _counts(self) -> tuple[Any, Any]:
        """Whether this step counts, and whether `_check` refuses it: bool tensors.

        A step is refused if its graph was made for another choice of what is trained. In an elastic
        job, before the ranks have agreed, one step does not count, and a second one is refused.
        """
        other = tf.not_equal(self._agreed_key, self._key)
        if not elastic_job():
            return tf.constant(True), other
        agreed = tf.not_equal(self._agreed_key, 0)
        local_steps = self._local_steps.assign_add(1 - tf.cast(agreed, tf.int64))
        return agreed, other & (agreed | (local_steps > 1))

    def flush(self) -> None:
        """Synchronise now, unless a window has just begun. Eager only.

        It covers the variables that this window's steps trained: a layer can be frozen only between
        two steps.
        """
        if not self.member:
            return
        if self.engine.parted:
            self.engine.check()
            if not self._agreed:
                self.agree()
            self.engine.flush()

    # ---- a sync --------------------------------------------------------------------------

    def _act(self) -> None:
        """Make the engine do what is due, in a graph or eagerly. A collective."""
        key = tf.constant(self._key, tf.int64)
        if tf.executing_eagerly():
            self._check(key)
            self._work(key)
        else:
            self._in_graph.add([key])

    def _touched(self) -> list[Any]:
        """The tf.Variables that a sync reads or writes and a step uses too."""
        weights = [native(slot.variable) for slot in self.slots]
        return [*weights, *self.inner.variables(), *self._saved().values()]

    def _check(self, key: Any) -> None:
        """Raise RuntimeError if this step must not have been taken."""
        self.engine.check()
        if int(self._agreed_key) == 0:
            raise RuntimeError(ONE_STEP)
        if int(key) != self._key:
            raise RuntimeError(
                "this training step was made when other variables were trained: after freezing or "
                "thawing layers compile the model again, or make the tf.function anew"
            )

    def _work(self, key: Any) -> None:
        self.engine.act()

    # ---- averages ------------------------------------------------------------------------

    def average_statistics(self, model: Any) -> None:
        """Average the model's moving statistics, once after each step. A collective, eager.

        It is equal on every rank: it depends on counters, and on the model, which every rank has.
        """
        step, at = self.counters.step, self.counters.statistics_at
        if self.member and self._agreed and int(at) != int(step):
            self._average("the average of the moving statistics", statistics_of(model))
            at.assign(step)

    def average_variables(self, variables: Sequence[Any]) -> None:
        """Set the variables and the anchor to the variables' mean. A collective, eager."""
        if self.member and self._agreed:
            self._average("the average of the averaged weights (EMA)", list(map(native, variables)))
            self._slow.anchor_here(range(len(self.slots)))

    def _average(self, what: str, variables: Sequence[Any]) -> None:
        name, bucket_bytes = f"{self.engine.name}.average", self.config.bucket_bytes
        with self.engine.together(what):
            average(variables, self._transport, name, bucket_bytes)

    # ---- one start -----------------------------------------------------------------------

    def agree(self) -> None:
        """Compare what must be equal, and give all ranks the root's anchor. A collective, eager.

        Raises:
            ValueError: the ranks differ; the same error on every rank.
        """
        with self._first_step():
            self._begin(self._to_freeze())

    def agree_after_broadcast(self) -> None:
        """`agree` on what the root trains, which a rank that has just come cannot know yet."""
        if not self.member:
            return
        with self._first_step():
            name = f"slowmo.{self.process_set.process_set_id}.frozen"
            gather = partial(self._transport.gather, name=name)
            keys = {rank: int(key) for rank, (key,) in gather([self._key * self._agreed]).items()}
            root = min(keys)
            frozen = self._frozen if keys[root] else self._to_freeze()
            if keys[root] and set(keys.values()) != {keys[root]}:
                frozen = tuple(gather_json(list(self._frozen), gather)[root])
            self._begin(frozen)

    def _first_step(self) -> contextlib.AbstractContextManager[None]:
        return self.engine.together("the first step", unnamed=True, warn_after=10)

    def _begin(self, frozen: tuple[int, ...]) -> None:
        begun = self.begun
        root = self._agree(frozen)
        self._train(frozen)
        self._slow.begin_afresh(frozen)
        self._take_anchor(self._trained(), root, begun=begun)
        self._agreed_key.assign(self._key)
        self._agreed, self._made_in_first_step = True, False
        self.engine.mend()

    def _trained(self) -> set[int]:
        return set(range(len(self.slots))) - set(self._frozen)

    def _train(self, frozen: tuple[int, ...]) -> None:
        """Train all variables except those at these positions."""
        self._frozen = frozen
        self._slow.train(frozen)
        self.inner.frozen = {id(native(self.slots[position].variable)) for position in frozen}
        self._key = 1 + zlib.crc32(repr(frozen).encode())

    def _change(self, frozen: tuple[int, ...]) -> None:
        """Agree on another choice of what is trained. A collective, eager.

        Variables that are frozen now stay where they are. Inside a window, where the workers
        differ, they take their mean. Variables that are trained from now on begin as in a first
        step. The window goes on.

        Raises:
            RuntimeError: some ranks have not changed their choice. The same on every rank.
            ValueError: the ranks freeze different variables. The same on every rank.
        """
        stopped = sorted(set(frozen) - set(self._frozen))
        started = set(self._frozen) - set(frozen)
        step = int(self.counters.step)
        size = total_bytes(self._slow.buckets)
        what = f"other variables to train after step {step}"
        excluded: tuple[int, ...] = ()
        self.engine.land()  # on what was trained so far; every rank that changes that does this
        inside = self.engine.parted
        with self.engine.together(
            f"the agreement on {what}", f"to agree on {what}", unnamed=True, size=size
        ):
            self.engine.meet()
            root = self._agree(frozen)
            name = f"{self.engine.name}.frozen"
            if inside and stopped:
                excluded = self.engine.take_mean(self._slow.part(stopped), name).excluded
            ids = self._ids(stopped)
            # Otherwise they would go on moving the weights apart.
            averages = [a for buffers in self.inner.buffers for a in buffers.averages_of(ids)]
            average(averages, self._transport, f"{name}.averages", self.config.bucket_bytes)
            self._slow.begin_afresh(stopped)
            self._slow.begin_afresh(started)
            self._take_anchor(started, root, begun=False)
            self._train(frozen)
            self._agreed_key.assign(self._key)
        if excluded:
            warn([frozen_without(excluded, step)])

    def _ids(self, positions: Sequence[int] | set[int]) -> set[int]:
        return {id(native(self.slots[position].variable)) for position in positions}

    def _agree(self, frozen: tuple[int, ...]) -> int:
        """Compare what must be equal, and this choice of what is not trained; return the root."""
        self.engine.count_from_there()
        parameters: list[list[Any]] = [[] for _ in self._leaves]
        for slot in self.slots:
            parameters[slot.group].append((slot.shape, slot.room.dtype))
        figures = figures_of(
            self.config,
            self.engine.schedule,
            has_slow_state=self.begun,
            compression=class_name(self._compression),
            groups=parameters,
            frozen=[f"number {i}, {list(self.slots[i].shape)}" for i in frozen],
            gradients_per_step=self._passes,
            buffers=[buffers.averaged_kinds for buffers in self.inner.buffers],
        )
        return self._peer.agree(self.engine, figures)

    def _take_anchor(self, positions: set[int], root: int, *, begun: bool) -> None:
        """Anchor these variables at the root's values, or at its anchor if they had an anchor."""
        slow = self._slow.part(positions)
        if not begun:
            slow.anchor_here(positions)
        size, name = total_bytes(slow.buckets), f"{self.engine.name}.anchor"
        with stall_watch.sending(self.engine, "in sending the first weights", size=size):
            gaps = take_anchor(slow, self._transport, name, mine=hvd.rank() == root)
        differ = [gap for gap in gaps if gap != 0]  # also true of a NaN
        # Weights that are made in the first step could not be broadcast before.
        if differ and not self._made_in_first_step:
            warn([unequal_start(hvd.rank(), root, max(differ))])
        if not begun:
            slow.restart()
            for buffers in self.inner.buffers:
                buffers.follow(of=self._ids(positions), at_start=not self.begun)
