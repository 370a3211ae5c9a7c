"""The outer loop of Algorithm 1 around any torch optimizer: windows, agreement, synchronisation."""

import logging
import math
import time
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import horovod.torch as hvd
import torch
from torch import Tensor

from slowmo_hvd.core.agreement import agree, class_name, figures_of, unequal_start
from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.elastic_job import ONE_STEP, before_run
from slowmo_hvd.core.outer import PLAIN_AVERAGE, outer_step
from slowmo_hvd.core.records import SyncRecord, SyncStats
from slowmo_hvd.core.roll_call import (
    RollCall,
    call_roll,
    exclusion,
    is_sound,
    mark,
    mark_of_change,
)
from slowmo_hvd.core.schedule import MeanLearningRate, Schedule, Sync
from slowmo_hvd.core.state import check_state, pack_inner, pack_state, unpack_counters
from slowmo_hvd.torch.arguments import check_groups
from slowmo_hvd.torch.buffers import BufferAverage, resolve_strategy
from slowmo_hvd.torch.callers import refuse_schedule_free_around, stack_level_of_user
from slowmo_hvd.torch.exchange import critical, gather_figures, stall_watch, sum_
from slowmo_hvd.torch.fresh_state import forget, reset
from slowmo_hvd.torch.frozen import frozen_without, take_mean, take_roots
from slowmo_hvd.torch.inner_state import tensor_form
from slowmo_hvd.torch.module_buffers import average_buffers
from slowmo_hvd.torch.parameters import Names, Parameters
from slowmo_hvd.torch.second_copies import SecondCopies, in_train_mode
from slowmo_hvd.torch.slow_model import SlowModel, real, slow_dtype

_logger = logging.getLogger("slowmo_hvd")
_Method = TypeVar("_Method", bound=Callable[..., None])
_AnyMethod = TypeVar("_AnyMethod", bound=Callable[..., Any])
# A compiled training step leaves the graph here: collectives and clocks cannot be traced.
_eager: Callable[[_Method], _Method] = torch.compiler.disable
_loops: weakref.WeakSet["OuterLoop"] = weakref.WeakSet()  # all that live


def _plain(method: _AnyMethod) -> _AnyMethod:
    """Without a graph, and with tensors that may be written to after ``torch.inference_mode()``."""
    return torch.inference_mode(False)(torch.no_grad()(method))


class OuterLoop:
    """Counts local steps, synchronises when the schedule says so, and holds the slow state.

    Call `before_step` and `after_step` around every attempted step of the inner optimizer, on
    every rank of the process set. All collectives of the PyTorch adapter start here.
    """

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        config: SlowMoConfig,
        *,
        compression: Any,
        process_set: Any,
        named: Iterable[tuple[str, Tensor]] = (),
    ) -> None:
        self.config = config
        self.process_set = process_set
        self._inner = inner
        self._strategy = resolve_strategy(config.buffers, inner)
        self._copies = SecondCopies(inner)
        self._compression = compression
        self._names = Names(named)
        self._begin_afresh()
        self._begin_unshared()

    def _begin_afresh(self) -> None:
        """No step taken: u_0 = 0, and no anchor until the first step begins."""
        self._schedule = Schedule(self.config.sync_period, self.config.warmup_steps)
        self._rates = [MeanLearningRate() for _ in self._inner.param_groups]
        self._slow: SlowModel | None = None
        self._known: Parameters | None = None  # those that the slow state is of
        self._agreed = False

    def _begin_unshared(self) -> None:
        """What a copy does not take from its original."""
        self._serial: int | None = None
        _loops.add(self)
        self._agreed = False
        self._local = False  # whether the step going on is the one before `hvd.elastic.run`
        self._told_of_gradients = False
        self._buffer_average = BufferAverage()
        self.stats = SyncStats()
        self.hooks: OrderedDict[int, Callable[[SyncRecord], None]] = OrderedDict()

    @property
    def member(self) -> bool:
        """Whether this rank trains in the process set; if not, its steps are local for good."""
        return bool(self.process_set.included())

    @property
    def _resets(self) -> bool:
        """Whether a sync now resets the inner optimizer's buffers; equal on every rank."""
        return self._strategy == "reset" and not self._schedule.warming_up

    @_eager
    def before_step(self) -> None:
        """Agree with the other ranks on one start, unless nothing has changed since they did."""
        if self.member:
            critical.check(self)
            if not self._agreed and before_run():  # rank-equal, see there
                if self._local:
                    raise RuntimeError(ONE_STEP)
                self._local = True
                return
            self._local = False
            self._agree(stepping=True)
            self._drop_gradients()

    @_eager
    def after_step(self, lrs: Sequence[Any]) -> None:
        """Count one attempted step, taken at these learning rates; synchronise if that is due."""
        if not self.member or self._local:
            return
        for rate, lr in zip(self._rates, lrs, strict=True):
            rate.add(lr.detach() if isinstance(lr, Tensor) else lr)
        due = self._schedule.tick()
        if due is not None:
            self._end_window(due)

    @_eager
    def flush(self, model: torch.nn.Module | None = None) -> None:
        """Synchronise now, unless a window has just begun; average the model's buffers.

        Rank-equal: it goes by counters and by the argument. Where some ranks gave no model, the
        comparison after a sync tells; where a window has just begun, these do not come.
        """
        syncs = self._schedule.position > 0
        if self._schedule.step == 0 or not self.member or not (syncs or model is not None):
            return
        if syncs:
            with in_train_mode(self._inner):
                self._end_window(Sync.FLUSH)
        else:
            self._agree(stepping=False)
        self._average_buffers(model)

    @_plain
    def _average_buffers(self, model: torch.nn.Module | None) -> None:
        step = self._schedule.step
        where = f"the average of the model's buffers after step {step}"
        with (
            critical.entered(self, where),
            stall_watch.waiting(self, f"in {where}, which every rank gives to flush()"),
        ):
            name = f"{self._name}.model"
            said = average_buffers(model, name=name, process_set=self.process_set, step=step)
        _warn(said)

    def _groups(self) -> list[list[Tensor]]:
        return [group["params"] for group in self._inner.param_groups]

    def _agree(self, *, stepping: bool) -> None:
        """One start for all ranks, in the first step, after a load, and for other parameters.

        Rank-equal where the optimizer is new or was loaded, as a script does that on every rank;
        where some ranks loaded and others did not, all are here, in their first step, and learn
        of it from the figures. Other parameters may be on one rank alone: see `_meet`.

        Args:
            stepping: whether a step begins, where a changed ``requires_grad`` counts, and not a
                sync: scripts switch it off for a while, and may flush or save there.
        """
        groups, known = self._groups(), self._known
        if not self._agreed or known is None:
            refuse_schedule_free_around()
            with (
                critical.entered(self, "the first step", unnamed=True),
                stall_watch.waiting(self, "in the first step", warn_after=10),
            ):
                said = self._agree_on(Parameters(groups), None)
            _warn(said)
            return
        if known.are(groups) and (known.switched_as if stepping else known.formed_as)(groups):
            return
        check_groups(self._inner)
        now = Parameters(groups) if stepping else known.at_a_sync(groups)
        step, difference = self._schedule.step, now.difference(known)
        _logger.info("other parameters after %d steps (%s): all ranks agree anew", step, difference)
        where, size = f"other parameters after step {step}", self._bytes(self._slow)
        with (
            critical.entered(self, f"the agreement on {where}", unnamed=True),
            stall_watch.waiting(self, f"to agree on {where}", size=size),
        ):
            self._meet()
            said = self._agree_on(now, known)
        _warn(said)

    @_plain
    def _meet(self) -> None:
        """Learn, in the allreduce of a sync, whether all ranks are about to train others.

        It has a sync's name and sizes. So a rank that is here alone meets the others in their
        next sync, and `call_roll` raises the same error on all of them. Nothing is averaged.
        """
        assert self._slow is not None  # _agree saw that the ranks have agreed
        flats = self._slow.nothing(self._spare)
        tail = flats[0][flats[0].numel() - self._spare :]
        tail[self.process_set.rank()] = mark_of_change(self._schedule.step)
        self._sum(flats, tail)
        with critical.alike():
            self._read(tail)

    @_plain
    def _agree_on(self, now: Parameters, before: Parameters | None) -> list[str]:
        """Agree with the other ranks; return what there is to warn of when all is over."""
        names = self._names.of(now.groups)
        figures = figures_of(
            self.config,
            self._schedule,
            has_slow_state=self._slow is not None,
            compression=class_name(self._compression),
            groups=[[(tuple(p.shape), str(p.dtype)) for p in group] for group in now.groups],
            names=names,
            frozen=[names[where] if names else where for where in now.frozen],
            earlier_positions=now.places_in(before) if before else (),
            buffers=list(self._copies.names),
        )
        family = f"slowmo.{self.process_set.process_set_id}"
        gather = partial(gather_figures, name=f"{family}.figures", process_set=self.process_set)

        def others() -> list[int | None]:
            return [loop._serial for loop in _loops if loop is not self]

        with critical.alike():
            root, self._serial = agree(figures, gather, self._serial, others)
        self._name = f"{family}.{self._serial}"
        apart, excluded = self._freeze(now, before, root)
        slow, apart_too = self._take_anchor(now, root)
        self._rates = now.follow(self._known, self._rates)
        self._slow, self._known, self._agreed = slow, now, True
        self._buffer_average = BufferAverage()  # a rank that is new here has agreed on none
        # Not before the end: a script may have made warnings errors, on this rank alone too.
        said = [frozen_without(excluded, self._schedule.step)] if excluded else []
        apart = torch.tensor([apart, apart_too], dtype=torch.float64, device="cpu").max().item()
        return said + ([unequal_start(hvd.rank(), root, apart)] if apart != 0 else [])  # a NaN too

    def _freeze(
        self, now: Parameters, before: Parameters | None, root: int
    ) -> tuple[float, tuple[int, ...]]:
        """Put the parameters that are not trained to one value on all ranks, and leave them.

        Those frozen inside a window take the workers' mean; of all that were not frozen before
        the checksums are compared. Rank-equal: the ranks agreed on which those are.

        Returns:
            How far this rank's were from the root's, and the ranks that are not in the mean.
        """
        excluded: tuple[int, ...] = ()
        since = now.frozen_since(before) if before else []
        if since and self._schedule.position > 0:
            assert self._slow is not None
            name, process_set = f"{self._name}.frozen", self.process_set
            params = {where: now.all[where] for where in since}
            sound = all(bool(param.isfinite().all()) for param in params.values())
            distances = self._copies.distances(params, sound=sound and self._copies.finite())
            roll = take_mean(
                self._slow,
                now.groups,
                since,
                self._schedule.step,
                self.config.on_nonfinite,
                name=name,
                process_set=process_set,
            )
            self._copies.follow(
                distances, roll.present, name=f"{name}_copies", process_set=process_set
            )
            excluded = roll.excluded
        for where in since:
            now.all[where].grad = None  # left from before it was frozen
        known = {id(before.all[where]) for where in before.frozen} if before else set()
        unknown = [now.all[where] for where in now.frozen if id(now.all[where]) not in known]
        if not unknown:
            return 0.0, excluded
        name = f"{self._name}.frozen_start"
        return take_roots(unknown, root, name=name, process_set=self.process_set), excluded

    def _drop_gradients(self) -> None:
        """Frozen parameters are not averaged, so the inner step must not move them here alone."""
        assert self._known is not None
        frozen = map(self._known.all.__getitem__, self._known.frozen)
        given = [param for param in frozen if param.grad is not None]
        for param in given:
            param.grad = None
        if given and not self._told_of_gradients:
            self._told_of_gradients = True
            warnings.warn(
                f"{len(given)} parameters with requires_grad=False have a gradient, and it is "
                "dropped: SlowMo neither trains nor averages them; set requires_grad=True to have "
                "them trained",
                stacklevel=stack_level_of_user(),
            )

    def _extended(self, now: Parameters) -> tuple[SlowModel, set[int]]:
        """The slow state of ``now``'s parameters, and the positions of those that had one.

        The others are anchored where they are.
        """
        slow = SlowModel(now.groups, now.trained, with_momentum=self.config.slow_momentum > 0)
        return slow, slow.inherit(self._slow) if self._slow else set()

    def _take_anchor(self, now: Parameters, root: int) -> tuple[SlowModel, float]:
        """Anchor all parameters at the root's values, those that had an anchor at its anchor.

        Returns:
            The slow state, and how far this rank's anchors were from the root's.
        """
        slow, old = self._extended(now)
        flats = [bucket.anchor for bucket in slow.buckets]
        before = [flat.clone() for flat in flats]
        if hvd.rank() != root:
            for flat in flats:
                flat.zero_()
        with stall_watch.sending(self, "in sending the first weights", size=self._bytes(slow)):
            sum_(
                flats,
                flats[0][:0],
                name=f"{self._name}.anchor",
                compression=hvd.Compression.none,
                process_set=self.process_set,
            )
        pairs = [(a, b) for a, b in zip(flats, before, strict=True) if a.numel()]
        gaps = [(a - b).abs().max().double().cpu() for a, b in pairs]
        slow.restart(set(now.trained) - old)
        return slow, torch.stack(gaps).max().item() if gaps else 0.0

    def _bytes(self, slow: SlowModel | None) -> int:
        """What its displacements have on the wire."""
        if slow is None or self.process_set.size() == 1:
            return 0
        return sum(bucket.anchor.nbytes for bucket in slow.buckets)

    @_plain
    def _end_window(self, kind: Sync) -> None:
        """Synchronise, and then call the hooks."""
        self._agree(stepping=False)
        with critical.entered(self, f"the sync after step {self._schedule.step}"):
            record = self._sync(kind)
        if record.excluded:
            _warn([exclusion(record.excluded, record.step)])
        for hook in list(self.hooks.values()):  # a hook may remove itself
            hook(record)

    def _sync(self, kind: Sync) -> SyncRecord:
        """Average the displacements, take the outer step, begin a window. A collective.

        Raises:
            RuntimeError: the ranks are in different syncs.
            FloatingPointError: displacements are not finite, as `call_roll` has it. Either is the
                same on every rank, and nothing has changed.
        """
        begin = time.perf_counter()
        slow, step = self._slow, self._schedule.step
        assert slow is not None  # _agree made it
        with (
            torch.profiler.record_function("slowmo.sync"),
            stall_watch.waiting(self, f"in the sync after step {step}", size=self._bytes(slow)),
        ):
            with critical.alike():
                flats, tail, sound = self._outgoing(slow)
            sent = self._sum(flats, tail)
            with critical.alike():
                roll, (squares, news_count, *rates) = self._read(tail)
            workers = roll.contributors
            gammas = tuple(rate / workers for rate in rates)
            norm = slow.squared_norm(flats) ** 0.5 / workers
            steps = [
                PLAIN_AVERAGE if kind is Sync.WARMUP else outer_step(self.config, gamma)
                for gamma in gammas
            ]
            params = {} if self._resets else slow.params()  # a reset drops the copies
            distances = self._copies.distances(params, sound=sound)
            slow.apply(flats, workers, steps)
            del flats, tail
            sent += self._begin_buffers(agree=news_count > 0, sound=sound)
            sent += self._copies.follow(
                distances, roll.present, name=f"{self._name}.copies", process_set=self.process_set
            )
        record = SyncRecord(
            kind=kind,
            step=step,
            window=self._schedule.window,
            workers=workers,
            learning_rates=gammas,
            bytes=sent,
            seconds=time.perf_counter() - begin,
            displacement_norm=norm,
            drift=max(squares / workers - norm**2, 0.0) ** 0.5,
            excluded=roll.excluded,
        )
        self._schedule.end(kind)
        for rate in self._rates:
            rate.clear()
        self.stats = self.stats.add(record)
        return record

    def _sum(self, flats: Sequence[Tensor], tail: Tensor) -> int:
        """The allreduce of a sync, in place; return the bytes sent."""
        return sum_(
            flats,
            tail,
            name=self._name,
            compression=self._compression,
            process_set=self.process_set,
        )

    def _outgoing(self, slow: SlowModel) -> tuple[list[Tensor], Tensor, bool]:
        """This worker's displacements, the figures at their end, and whether it is sound.

        The figures: a mark for each worker, as `slowmo_hvd.core.roll_call` has it; ‖d‖²; whether
        this worker has news about its buffers; γ of each group. A worker that is not sound sends
        zeros, but for its mark.
        """
        workers, spare = self.process_set.size(), self._spare
        flats = slow.displacements(spare)
        tail = flats[0][flats[0].numel() - spare :]
        squares = slow.squared_norm(flats)
        gammas = [rate.mean for rate in self._rates]
        averages = self._strategy == "average"
        sound = is_sound(squares, gammas) and self._copies.finite()
        sound = sound and not (averages and not self._buffer_average.finite(self._inner))
        figures = [0.0] * spare
        if sound:
            news = averages and self._buffer_average.has_news(self._inner)
            figures[workers:] = [squares, news, *gammas]
        else:
            for flat in flats:
                flat.zero_()
        figures[self.process_set.rank()] = mark(self._schedule.step, sound=sound)
        tail.copy_(torch.tensor(figures, dtype=torch.float64, device="cpu"))
        return flats, tail, sound

    @property
    def _spare(self) -> int:
        """How many figures travel with the displacements."""
        return int(self.process_set.size()) + 2 + len(self._rates)

    def _read(self, tail: Tensor) -> tuple[RollCall, list[float]]:
        """Who is in this sync, and the sums of the other figures."""
        workers = self.process_set.size()
        figures = tail.tolist()
        roll = call_roll(figures[:workers], self.process_set.ranks, self.config.on_nonfinite)
        return roll, figures[workers:]

    def _begin_buffers(self, *, agree: bool, sound: bool) -> int:
        """Line 2 of Algorithm 1; return the bytes sent.

        Rank-equal but for a reset: it goes by the strategy, the schedule, and what the allreduce
        brought. A worker that is not sound resets its buffers, and so has none to be averaged.
        """
        if not sound:
            forget(self._inner)
        elif self._resets:
            reset(self._inner)
        if self._strategy != "average":
            return 0
        if agree:
            name, process_set = f"{self._name}.buffer_keys", self.process_set
            gather = partial(gather_figures, name=name, process_set=process_set)
            self._buffer_average.agree(self._inner, gather)
        return self._buffer_average.average(
            self._inner, name=f"{self._name}.buffers", process_set=self.process_set
        )

    @_plain
    def state(self, inner: Any) -> dict[str, Any]:
        """The slow state, as `slowmo_hvd.core.state` describes it; the tensors are live.

        Args:
            inner: the inner optimizer's state_dict, to save the form of it.
        """
        critical.check_whole(self)
        slow, rates, groups = self._slow, self._rates, self._groups()
        if self._known is None:
            rates = [MeanLearningRate() for _ in groups]
        elif not (self._known.are(groups) and self._known.formed_as(groups)):
            now = self._known.at_a_sync(groups)  # new parameters have not had a step yet
            slow, rates = self._extended(now)[0], now.follow(self._known, rates)
        anchors = slow.anchors() if slow else {}
        everyone = range(sum(map(len, groups)) if slow else 0)
        return pack_state(
            self.config,
            self._schedule,
            rates,
            anchor=anchors,
            momentum=slow.momenta() if slow else {},
            frozen=[position for position in everyone if position not in anchors],
            inner=self._of_inner(inner),
        )

    def check(self, saved: Any, inner: Any) -> None:
        """Raise ValueError unless ``saved`` and the inner state with it can be loaded wholly."""
        params = [real(param) for group in self._groups() for param in group]

        def fault(position: int, tensor: Any) -> str | None:
            return _fault(tensor, slow_dtype(params[position].dtype))

        shapes = [tuple(param.shape) for param in params]
        groups = len(self._inner.param_groups)
        check_state(saved, self.config, groups, shapes, self._of_inner(inner), fault)

    def _of_inner(self, state: Any) -> dict[str, Any]:
        shapes = [tuple(param.shape) for group in self._groups() for param in group]
        return pack_inner(type(self._inner).__name__, shapes, state, tensor_form)

    @_plain
    def load(self, saved: Any) -> None:
        """Take a checked slow state over, or begin afresh if it is None."""
        slow = known = None
        if saved is not None and saved["step"] + len(saved["anchor"]):
            # First all that can fail, for want of memory. What is frozen now but was trained, or
            # the reverse, is for the next agreement.
            groups, held = self._groups(), saved["anchor"]
            known = Parameters(groups, [place in held for place in range(sum(map(len, groups)))])
            if self._known is not None and self._known.are(groups) and self._slow is not None:
                slow = self._slow if self._slow.holds(held, saved["momentum"]) else None
            if slow is None:
                slow = SlowModel(groups, held, with_momentum=self.config.slow_momentum > 0)
                slow.load(held, saved["momentum"])
        self._begin_afresh()
        if saved is not None:
            self._rates = unpack_counters(saved, self._schedule)
            self._slow, self._known = slow, known

    def __getstate__(self) -> dict[str, Any]:
        """For deepcopy and pickle."""
        critical.check_whole(self)
        kept = dict(self.__dict__)
        for name in ("_serial", "_agreed", "_buffer_average", "stats", "hooks"):
            del kept[name]
        # Horovod compares the global process set by identity: a copy of it would be another set.
        if self.process_set is hvd.global_process_set:
            kept["process_set"] = None
        return kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.process_set is None:
            self.process_set = hvd.global_process_set
        self._begin_unshared()


def _warn(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        warnings.warn(sentence, stacklevel=stack_level_of_user())


def _fault(tensor: Any, dtype: torch.dtype) -> str | None:
    """What is wrong with a saved anchor or momentum that is to be of this dtype."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
        return f"is no dense tensor with values but a {type(tensor).__name__}"
    if tensor.dtype != dtype:
        return f"is {tensor.dtype} and this optimizer keeps {dtype}"
    if tensor.numel() == 0:
        return None
    least, largest = tensor.aminmax()  # NaN, both, if any element is
    return None if math.isfinite(least) and math.isfinite(largest) else "is not finite"
