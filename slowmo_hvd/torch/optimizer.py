"""DistributedOptimizer: τ local steps of any torch optimizer, one allreduce, one slow step."""

import collections
import contextlib
import itertools
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import horovod.torch as hvd
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from slowmo_hvd.core.agreement import check_agreement, figures_of
from slowmo_hvd.core.arguments import check_backward_passes, check_op, refuse_gradient_arguments
from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.outer import PLAIN_AVERAGE, outer_step
from slowmo_hvd.core.schedule import MeanLearningRate, Schedule, Sync
from slowmo_hvd.core.state import check_state, pack_state, unpack_counters
from slowmo_hvd.core.stats import SyncRecord, SyncStats
from slowmo_hvd.torch import gradients
from slowmo_hvd.torch.arguments import check_inner, check_names, check_process_set, op_name
from slowmo_hvd.torch.buffers import BufferAverage, reset, resolve_strategy
from slowmo_hvd.torch.callers import is_initialising_state
from slowmo_hvd.torch.exchange import gather_figures, sum_
from slowmo_hvd.torch.slow_model import SlowModel, real

_logger = logging.getLogger("slowmo_hvd")
_instances = itertools.count()  # names of collectives: no two optimizers may share one
_HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
    "_sync_hooks",
)


class DistributedOptimizer(torch.optim.Optimizer):
    """SlowMo around any torch optimizer, in the place of Horovod's DistributedOptimizer.

    Each worker takes ``sync_period`` (τ) steps of ``optimizer`` on its own gradients; then the
    workers average their displacements d̄ by one allreduce, and a slow momentum step follows
    (arXiv 1910.00643, Algorithm 1; γ is the learning rate)::

        u ← β u + d̄ / γ
        x ← x_0 - α γ u

    Use it as the optimizer it wraps: ``param_groups``, ``state`` and ``defaults`` are that
    optimizer's own, so schedulers, GradScaler, closures and hooks work. Communication happens
    in `step`, `flush` and, to agree on one start, in the first step; nowhere else.

    Args:
        optimizer: the inner optimizer, any ``torch.optim.Optimizer`` with a learning rate "lr".
        named_parameters: ``model.named_parameters()``; checked as Horovod checks it.
        compression: ``hvd.Compression.none`` or ``.fp16``, for the displacements on the wire.
        backward_passes_per_step: backward passes before each `step`; their gradients add up.
        op: ``hvd.Average``, the only reduction that SlowMo knows.
        gradient_predivide_factor: only 1.0; SlowMo sends no gradients.
        num_groups: only 0, likewise.
        groups: only None, likewise.
        sparse_as_dense: give the inner optimizer dense gradients in place of sparse ones.
        process_set: the ranks that train together. On other ranks the optimizer stays local.
        sync_period: τ, local steps between two averages, >= 1.
        slow_lr: α, the slow learning rate, > 0.
        slow_momentum: β, the slow momentum, 0 <= β < 1; 0 is Local SGD.
        nesterov: the outer step in the Nesterov form of ``torch.optim.SGD`` (DiLoCo's).
        buffers: "reset", "maintain" or "average" the inner optimizer's buffers where a window
            begins; "auto" resets for SGD and maintains for Adam and all others.
        warmup_steps: the number of first steps that are each followed by a plain average.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, one without meaning for SlowMo, or an optimizer
            that is distributed already.
    """

    # GradScaler then shows us every attempt, also one that overflowed on this rank alone: it
    # still counts, or the ranks' schedules would part and the next sync would hang.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, Tensor]] | None = None,
        compression: Any = hvd.Compression.none,
        backward_passes_per_step: int = 1,
        op: Any = hvd.Average,
        gradient_predivide_factor: float = 1.0,
        num_groups: int = 0,
        groups: Any = None,
        sparse_as_dense: bool = False,
        process_set: Any = hvd.global_process_set,
        *,
        sync_period: int = 12,
        slow_lr: float = 1.0,
        slow_momentum: float = 0.5,
        nesterov: bool = False,
        buffers: str = "auto",
        warmup_steps: int = 0,
    ) -> None:
        # Not super().__init__(): it would replace the inner optimizer's state and groups.
        check_inner(optimizer)
        check_names(named_parameters, optimizer)
        check_op(op_name(op), is_average=op == hvd.Average)
        refuse_gradient_arguments(
            gradient_predivide_factor=(gradient_predivide_factor, 1.0),
            num_groups=(num_groups, 0),
            groups=(groups, None),
        )
        self.backward_passes_per_step = check_backward_passes(backward_passes_per_step)
        self._config = SlowMoConfig(
            sync_period=sync_period,
            slow_lr=slow_lr,
            slow_momentum=slow_momentum,
            nesterov=nesterov,
            buffers=buffers,
            warmup_steps=warmup_steps,
        )
        self._inner = optimizer
        self._strategy = resolve_strategy(buffers, optimizer)
        self._compression = compression
        self._sparse_as_dense = sparse_as_dense
        self._process_set = process_set
        self._schedule = Schedule(self._config.sync_period, self._config.warmup_steps)
        self._rates = [MeanLearningRate() for _ in optimizer.param_groups]
        self._slow: SlowModel | None = None
        self._finish_init()
        check_process_set(process_set)

    def _finish_init(self) -> None:
        """What a copy or an unpickled optimizer must begin anew rather than share."""
        for name in _HOOKS:
            setattr(self, name, collections.OrderedDict())
        self._name = f"slowmo.{next(_instances)}"
        self._stats = SyncStats()
        self._buffer_average = BufferAverage()
        self._agreed_layout: tuple[int, ...] | None = None
        self._patch_step_function()

    # ---- the inner optimizer's own -------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The inner optimizer's, never a copy: its load_state_dict replaces the list."""
        return self._inner.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        self._inner.param_groups = value

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The inner optimizer's; the slow state is not in it, but in `state_dict`."""
        return self._inner.state

    @state.setter
    def state(self, value: Any) -> None:
        self._inner.state = value

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The inner optimizer's."""
        return self._inner.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        self._inner.defaults = value

    def __getattr__(self, name: str) -> Any:
        # Methods that some optimizers add, such as train() and eval() of schedule-free ones.
        if name == "_inner" or name.startswith("__"):  # while unpickling there is no inner yet
            raise AttributeError(name)
        return getattr(self._inner, name)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the inner optimizer. Every rank does so before the same step.

        Its anchor is taken, from the lowest rank, when the next step begins.
        """
        self._inner.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the inner optimizer's."""
        self._inner.zero_grad(set_to_none=set_to_none)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self._config.asdict().items())
        return f"DistributedOptimizer({settings}) around {self._inner!r}"

    # ---- Horovod's own -------------------------------------------------------------------

    @property
    def process_set(self) -> Any:
        """The ranks that train together."""
        return self._process_set

    def synchronize(self) -> None:
        """Nothing: gradients stay local, so they are ready for clipping as soon as they exist."""

    @contextlib.contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """Nothing, for scripts that follow `synchronize` by a `step` in this context.

        Such a step counts as every other, and may end a window.
        """
        yield

    def set_backward_passes_per_step(self, passes: int) -> None:
        """Replace ``backward_passes_per_step``, which changes no arithmetic here."""
        self.backward_passes_per_step = check_backward_passes(passes)

    # ---- training ------------------------------------------------------------------------

    @torch.compiler.disable(recursive=False)  # the inner step may be compiled, a collective not
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One local step, and the sync that it makes due.

        Under GradScaler a step whose gradients overflowed on this rank is left out here, and
        still counts.

        Returns:
            What the inner optimizer's step returns.

        Raises:
            ValueError: in the first step, on every rank, if the ranks do not agree on the
                configuration, the model or the position.
        """
        if not self._inner.state and is_initialising_state():
            return self._inner.step(closure)  # zero gradients, on this rank alone: not ours
        args: Any = (self, closure) if closure is not None else (self,)
        kwargs: dict[str, Any] = {}
        for pre_hook in self._optimizer_step_pre_hooks.values():
            changed = pre_hook(self, args, kwargs)
            if changed is not None:
                args, kwargs = changed
        loss = self._step(*args[1:], **kwargs)
        for post_hook in self._optimizer_step_post_hooks.values():
            post_hook(self, args, kwargs)
        return loss

    # torch would wrap our step in its global hooks, which already fire for the inner step.
    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], float] | None = None) -> float | None:
        member = self._member()
        if member:
            self._agree()
        lrs = [group["lr"] for group in self.param_groups]
        loss = self._local_step(closure)
        if member:
            for rate, lr in zip(self._rates, lrs, strict=True):
                rate.add(lr.detach() if isinstance(lr, Tensor) else lr)
            sync = self._schedule.tick()
            if sync is not None:
                self._sync(sync)
        return loss

    def _local_step(self, closure: Callable[[], float] | None) -> float | None:
        if gradients.overflowed(self):
            return None
        gradients.unscale(self)
        if self._sparse_as_dense:
            closure = gradients.densify(self, closure)
        return self._inner.step() if closure is None else self._inner.step(closure)

    def flush(self) -> None:
        """End the window early, with a sync as at its end, so that all ranks hold one model.

        For saving and evaluation: training goes on with a fresh window. At a window's start it
        does nothing. A collective: every rank calls it after the same step.
        """
        if self._schedule.position > 0 and self._member():
            self._agree()
            self._sync(Sync.FLUSH)

    def register_sync_hook(self, hook: Callable[[SyncRecord], None]) -> RemovableHandle:
        """Have ``hook(record)`` called after each sync, for a logger.

        The hook runs on the rank that registered it; a collective inside it must be registered
        on all.

        Returns:
            A handle whose ``remove()`` takes the hook back.
        """
        handle = RemovableHandle(self._sync_hooks)
        self._sync_hooks[handle.id] = hook
        return handle

    @property
    def sync_stats(self) -> SyncStats:
        """The syncs of this optimizer in this process: how many, bytes, seconds, the latest."""
        return self._stats

    # ---- the window ----------------------------------------------------------------------

    def _member(self) -> bool:
        """Whether this rank trains in the process set; if not, the optimizer stays local."""
        return bool(self._process_set.included())

    def _groups(self) -> list[list[Tensor]]:
        return [group["params"] for group in self.param_groups]

    @torch.no_grad()
    def _agree(self) -> None:
        """Before the first step, and after a load or a new group: one start for all ranks.

        Rank-equal: it runs when the optimizer is new, was loaded or has a new group, which a
        script does on every rank; where some ranks loaded and others did not, all are here,
        in their first step, and learn of it from the figures.
        """
        layout = tuple(map(len, self._groups()))
        if layout == self._agreed_layout:
            return
        shapes = [tuple(param.shape) for group in self._groups() for param in group]
        figures = figures_of(
            self._config, self._schedule, has_slow_state=self._slow is not None, shapes=shapes
        )
        by_rank = gather_figures(
            figures.values, name=f"{self._name}.figures", process_set=self._process_set
        )
        check_agreement(figures.names, by_rank)
        self._take_anchor(root=min(by_rank))
        self._rates += [MeanLearningRate() for _ in layout[len(self._rates) :]]
        self._agreed_layout = layout

    def _take_anchor(self, root: int) -> None:
        """Anchor all parameters at the root's values, those that had an anchor at its anchor."""
        slow = SlowModel(self._groups(), with_momentum=self._config.slow_momentum > 0)
        new = set(slow.params())
        if self._slow is not None:
            known = {id(param) for param in self._slow.params().values()}
            new = {where for where, param in slow.params().items() if id(param) not in known}
            slow.inherit(self._slow)
        flats = [bucket.anchor for bucket in slow.buckets]
        before = [flat.clone() for flat in flats]
        if hvd.rank() != root:
            for flat in flats:
                flat.zero_()
        sum_(
            flats,
            flats[0][:0],
            name=f"{self._name}.anchor",
            compression=hvd.Compression.none,
            process_set=self._process_set,
        )
        gaps = ((a - b).abs() for a, b in zip(flats, before, strict=True))
        apart = max((gap.max().item() for gap in gaps if gap.numel()), default=0.0)
        if apart > 0:
            warnings.warn(
                f"rank {hvd.rank()} started from other weights than rank {root} (up to {apart:.3g} "
                f"apart) and takes rank {root}'s; call hvd.broadcast_parameters first",
                stacklevel=5,
            )
        slow.restart(new)
        self._slow = slow

    @torch.no_grad()
    def _sync(self, kind: Sync) -> None:
        """Average the displacements, take the outer step, begin a window. A collective."""
        begin = time.perf_counter()
        slow = self._slow
        assert slow is not None  # _agree made it
        with torch.profiler.record_function("slowmo.sync"):
            flats = slow.displacements(spare=3 + len(self._rates))
            tail = flats[0][-3 - len(self._rates) :]
            news = self._strategy == "average" and self._buffer_average.has_news(self._inner)
            tail.copy_(
                torch.tensor(
                    [1, slow.squared_norm(flats), news, *(rate.mean for rate in self._rates)],
                    dtype=torch.float64,
                )
            )
            sent = sum_(
                flats,
                tail,
                name=self._name,
                compression=self._compression,
                process_set=self._process_set,
            )
            workers, squares, news_count, *rates = tail.tolist()
            gammas = tuple(rate / workers for rate in rates)
            norm = slow.squared_norm(flats) ** 0.5 / workers
            steps = [
                PLAIN_AVERAGE if kind is Sync.WARMUP else outer_step(self._config, gamma)
                for gamma in gammas
            ]
            slow.apply(flats, int(workers), steps)
            del flats, tail
            sent += self._begin_buffers(kind, int(workers), agree=news_count > 0)
        record = SyncRecord(
            kind=kind,
            step=self._schedule.step,
            window=self._schedule.window,
            workers=int(workers),
            learning_rates=gammas,
            bytes=sent,
            seconds=time.perf_counter() - begin,
            displacement_norm=norm,
            drift=max(squares / workers - norm**2, 0.0) ** 0.5,
        )
        self._schedule.end(kind)
        for rate in self._rates:
            rate.clear()
        self._stats = self._stats.add(record)
        for hook in self._sync_hooks.values():
            hook(record)

    def _begin_buffers(self, kind: Sync, workers: int, *, agree: bool) -> int:
        """Line 2 of Algorithm 1; return the bytes sent.

        Rank-equal: strategy and kind are configuration and schedule, the rest came by allreduce.
        """
        if self._strategy == "reset" and not self._schedule.warming_up:
            reset(self._inner)
        if self._strategy != "average":
            return 0
        if agree and workers == self._process_set.size():  # a joined rank could not take part
            self._buffer_average.agree(
                self._inner, name=f"{self._name}.layout", process_set=self._process_set
            )
        return self._buffer_average.average(
            self._inner,
            name=f"{self._name}.buffers",
            compression=self._compression,
            process_set=self._process_set,
        )

    # ---- checkpoints and copies ------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """The inner optimizer's state_dict, and the slow state under "slowmo".

        Builtins and tensors only, so that ``torch.load(weights_only=True)`` reads it. The
        tensors are the live ones, as in torch: copy them if training goes on before they are
        saved. `slowmo_hvd.core.state` describes the slow state.
        """
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        slow = self._slow
        state: dict[str, Any] = dict(self._inner.state_dict())
        state["slowmo"] = pack_state(
            self._config,
            self._schedule,
            self._rates,
            anchor=slow.anchors() if slow else {},
            momentum=slow.momenta() if slow else {},
        )
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            changed = post_hook(self, state)
            if changed is not None:
                state = changed
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # type: ignore[override]
        """Load what `state_dict` returned, wholly or, on any error, not at all.

        A checkpoint of the bare inner optimizer, or of Horovod's DistributedOptimizer, loads
        too: the slow state then begins afresh, and one info line says so.

        Raises:
            ValueError: the state does not fit this optimizer; nothing has changed.
        """
        state_dict = dict(state_dict)
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = pre_hook(self, state_dict)
            if changed is not None:
                state_dict = dict(changed)
        saved = state_dict.pop("slowmo", None)
        if saved is None:
            _logger.info("no slow state in this checkpoint: the slow momentum begins afresh")
        else:
            shapes = [tuple(real(param).shape) for group in self._groups() for param in group]
            check_state(saved, self._config, len(self.param_groups), shapes)
        before = self._inner.state, self._inner.param_groups
        try:
            self._inner.load_state_dict(state_dict)
        except BaseException:
            self._inner.state, self._inner.param_groups = before
            raise
        self._schedule = Schedule(self._config.sync_period, self._config.warmup_steps)
        self._rates = [MeanLearningRate() for _ in self.param_groups]
        self._slow = None
        self._agreed_layout = None
        if saved is not None:
            self._rates = unpack_counters(saved, self._schedule)
            if saved["anchor"]:
                with_momentum = self._config.slow_momentum > 0
                self._slow = SlowModel(self._groups(), with_momentum=with_momentum)
                self._slow.load(saved["anchor"], saved["momentum"])
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        """For deepcopy and pickle: all but hooks, statistics and what a scheduler patched in."""
        kept = dict(self.__dict__)
        for name in (*_HOOKS, "_name", "_stats", "_buffer_average", "_agreed_layout", "step"):
            kept.pop(name, None)
        kept["_process_set"] = _pack_process_set(self._process_set)
        return kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._process_set = _unpack_process_set(state["_process_set"])
        self._finish_init()


def _pack_process_set(process_set: Any) -> Any:
    # The global process set is one object, compared by identity: a copy would be another set.
    return None if process_set is hvd.global_process_set else process_set


def _unpack_process_set(packed: Any) -> Any:
    return hvd.global_process_set if packed is None else packed
