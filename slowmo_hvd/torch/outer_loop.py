"""The outer loop of Algorithm 1 around any torch optimizer: windows, agreement, synchronisation."""

import contextlib
import time
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import horovod.torch as hvd
import torch
from torch import Tensor

from slowmo_hvd.core.agreement import agree, class_name, figures_of, unequal_start
from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.outer import PLAIN_AVERAGE, outer_step
from slowmo_hvd.core.records import SyncRecord, SyncStats
from slowmo_hvd.core.roll_call import RollCall, call_roll, exclusion, is_sound, mark
from slowmo_hvd.core.schedule import MeanLearningRate, Schedule, Sync
from slowmo_hvd.core.state import check_state, pack_inner, pack_state, unpack_counters
from slowmo_hvd.torch.buffers import BufferAverage, resolve_strategy
from slowmo_hvd.torch.callers import refuse_schedule_free_around, stack_level_of_user
from slowmo_hvd.torch.exchange import gather_figures, stall_watch, sum_
from slowmo_hvd.torch.fresh_state import forget, reset
from slowmo_hvd.torch.inner_state import tensor_form
from slowmo_hvd.torch.module_buffers import average_buffers
from slowmo_hvd.torch.second_copies import SecondCopies, in_train_mode
from slowmo_hvd.torch.slow_model import SlowModel, real, slow_dtype

_Method = TypeVar("_Method", bound=Callable[..., None])
# A compiled training step leaves the graph here: collectives and clocks cannot be traced.
_eager: Callable[[_Method], _Method] = torch.compiler.disable
_loops: weakref.WeakSet["OuterLoop"] = weakref.WeakSet()  # all that live


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
    ) -> None:
        self.config = config
        self.process_set = process_set
        self._inner = inner
        self._strategy = resolve_strategy(config.buffers, inner)
        self._copies = SecondCopies(inner)
        self._compression = compression
        self._begin_afresh()
        self._begin_unshared()

    def _begin_afresh(self) -> None:
        """No step taken: u_0 = 0, and no anchor until the first step begins."""
        self._schedule = Schedule(self.config.sync_period, self.config.warmup_steps)
        self._rates = [MeanLearningRate() for _ in self._inner.param_groups]
        self._slow: SlowModel | None = None
        self._agreed_groups: tuple[int, ...] | None = None

    def _begin_unshared(self) -> None:
        """What a copy does not take from its original."""
        self._serial: int | None = None
        _loops.add(self)
        self._agreed_groups = None
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
        """Agree with the other ranks on one start, if that has not happened yet."""
        if self.member:
            self._agree()

    @_eager
    def after_step(self, lrs: Sequence[Any]) -> None:
        """Count one attempted step, taken at these learning rates; synchronise if that is due."""
        if not self.member:
            return
        for rate, lr in zip(self._rates, lrs, strict=True):
            rate.add(lr.detach() if isinstance(lr, Tensor) else lr)
        due = self._schedule.tick()
        if due is not None:
            self._sync(due)

    @_eager
    def flush(self, model: torch.nn.Module | None = None) -> None:
        """Synchronise now, unless a window has just begun; average the model's buffers.

        Rank-equal: it goes by counters and by the argument. Where some ranks gave no model, the
        comparison after a sync tells; where a window has just begun, these do not come.
        """
        step, syncs = self._schedule.step, self._schedule.position > 0
        if step == 0 or not self.member or not (syncs or model is not None):
            return
        with in_train_mode(self._inner) if syncs else contextlib.nullcontext():
            self._agree()
            if syncs:
                self._sync(Sync.FLUSH)
        where = f"in the average of the model's buffers after step {step}, which every rank gives"
        with stall_watch.waiting(self, f"{where} to flush()"):
            name = f"{self._name}.model"
            average_buffers(model, name=name, process_set=self.process_set, step=step)

    def _groups(self) -> list[list[Tensor]]:
        return [group["params"] for group in self._inner.param_groups]

    @torch.no_grad()
    def _agree(self) -> None:
        """Before the first step, and after a load or a new group: one start for all ranks.

        Rank-equal: it runs when the optimizer is new, was loaded or has a new group, which a
        script does on every rank; where some ranks loaded and others did not, all are here,
        in their first step, and learn of it from the figures.
        """
        sizes = tuple(map(len, self._groups()))
        if sizes == self._agreed_groups:
            return
        with stall_watch.waiting(self, "in the first step", warn_after=10):
            self._agree_on(sizes)

    def _agree_on(self, sizes: tuple[int, ...]) -> None:
        refuse_schedule_free_around()
        figures = figures_of(
            self.config,
            self._schedule,
            has_slow_state=self._slow is not None,
            compression=class_name(self._compression),
            groups=[[(tuple(p.shape), str(p.dtype)) for p in group] for group in self._groups()],
            buffers=list(self._copies.names),
        )
        family = f"slowmo.{self.process_set.process_set_id}"
        gather = partial(gather_figures, name=f"{family}.figures", process_set=self.process_set)

        def others() -> list[int | None]:
            return [loop._serial for loop in _loops if loop is not self]

        root, self._serial = agree(figures, gather, self._serial, others)
        self._name = f"{family}.{self._serial}"
        self._take_anchor(root)
        self._buffer_average = BufferAverage()  # a rank that is new here has agreed on none
        self._agreed_groups = sizes

    def _extended(self) -> tuple[SlowModel, list[MeanLearningRate]]:
        """The slow state with parameters that are new in it anchored where they are."""
        slow = SlowModel(self._groups(), with_momentum=self.config.slow_momentum > 0)
        if self._slow is not None:
            slow.inherit(self._slow)
        new_groups = self._groups()[len(self._rates) :]
        return slow, self._rates + [MeanLearningRate() for _ in new_groups]

    def _take_anchor(self, root: int) -> None:
        """Anchor all parameters at the root's values, those that had an anchor at its anchor."""
        known = {id(param) for param in self._slow.params().values()} if self._slow else set()
        self._slow, self._rates = self._extended()
        new = {where for where, param in self._slow.params().items() if id(param) not in known}
        flats = [bucket.anchor for bucket in self._slow.buckets]
        before = [flat.clone() for flat in flats]
        if hvd.rank() != root:
            for flat in flats:
                flat.zero_()
        sum_(
            flats,
            flats[0][:0],
            name=f"{self._name}.anchor",
            compression=hvd.Compression.none,
            process_set=self.process_set,
        )
        pairs = [(a, b) for a, b in zip(flats, before, strict=True) if a.numel()]
        gaps = [(a - b).abs().max().double().cpu() for a, b in pairs]
        apart = torch.stack(gaps).max().item() if gaps else 0.0
        if apart != 0:  # a NaN too
            warnings.warn(
                unequal_start(hvd.rank(), root, apart),
                stacklevel=stack_level_of_user(),
            )
        self._slow.restart(new)

    @torch.no_grad()
    def _sync(self, kind: Sync) -> None:
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
            stall_watch.waiting(self, f"in the sync after step {step}"),
        ):
            flats, tail, sound = self._outgoing(slow)
            sent = sum_(
                flats,
                tail,
                name=self._name,
                compression=self._compression,
                process_set=self.process_set,
            )
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
        if roll.excluded:
            warnings.warn(exclusion(roll.excluded, step), stacklevel=stack_level_of_user())
        for hook in self.hooks.values():
            hook(record)

    def _outgoing(self, slow: SlowModel) -> tuple[list[Tensor], Tensor, bool]:
        """This worker's displacements, the figures at their end, and whether it is sound.

        The figures: a mark for each worker, as `slowmo_hvd.core.roll_call` has it; ‖d‖²; whether
        this worker has news about its buffers; γ of each group. A worker that is not sound sends
        zeros, but for its mark.
        """
        workers = self.process_set.size()
        spare = workers + 2 + len(self._rates)
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
        tail.copy_(torch.tensor(figures, dtype=torch.float64))
        return flats, tail, sound

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

    @torch.no_grad()
    def state(self, inner: Any) -> dict[str, Any]:
        """The slow state, as `slowmo_hvd.core.state` describes it; the tensors are live.

        Args:
            inner: the inner optimizer's state_dict, to save the form of it.
        """
        slow, rates = self._slow, self._rates
        if slow is not None and len(slow.params()) != sum(map(len, self._groups())):
            slow, rates = self._extended()  # a new group's parameters have not had a step yet
        return pack_state(
            self.config,
            self._schedule,
            rates,
            anchor=slow.anchors() if slow else {},
            momentum=slow.momenta() if slow else {},
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

    @torch.no_grad()
    def load(self, saved: Any) -> None:
        """Take a checked slow state over, or begin afresh if it is None."""
        slow = None
        if saved is not None and saved["anchor"]:  # first all that can fail, for want of memory
            slow = SlowModel(self._groups(), with_momentum=self.config.slow_momentum > 0)
            slow.load(saved["anchor"], saved["momentum"])
        self._begin_afresh()
        if saved is not None:
            self._rates = unpack_counters(saved, self._schedule)
            self._slow = slow

    def __getstate__(self) -> dict[str, Any]:
        """For deepcopy and pickle."""
        kept = dict(self.__dict__)
        for name in ("_serial", "_agreed_groups", "_buffer_average", "stats", "hooks"):
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


def _fault(tensor: Any, dtype: torch.dtype) -> str | None:
    """What is wrong with a saved anchor or momentum that is to be of this dtype."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
        return f"is no dense tensor with values but a {type(tensor).__name__}"
    if tensor.dtype != dtype:
        return f"is {tensor.dtype} and this optimizer keeps {dtype}"
    return None if bool(torch.isfinite(tensor).all()) else "is not finite"
