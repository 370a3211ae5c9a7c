"""DistributedOptimizer: τ local steps of any torch optimizer, one allreduce, one slow step."""

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import horovod.torch as hvd
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from slowmo_hvd.core.arguments import (
    check_backward_passes,
    check_compression,
    check_op,
    check_process_set,
    refuse_gradient_arguments,
    refuse_late,
)
from slowmo_hvd.core.checks import check_flag, check_integer
from slowmo_hvd.core.config import OfWindow, SlowMoConfig, SyncPeriod
from slowmo_hvd.core.records import SyncRecord, SyncStats
from slowmo_hvd.core.state import refusal
from slowmo_hvd.torch import gradients
from slowmo_hvd.torch.arguments import check_groups, check_inner, check_names
from slowmo_hvd.torch.callers import is_distributed_checkpoint, is_initialising_state
from slowmo_hvd.torch.checkpoint import check_slow_state, load_slow_state, slow_state
from slowmo_hvd.torch.inner_state import load_inner, unchanged_on_error
from slowmo_hvd.torch.module_buffers import check_model
from slowmo_hvd.torch.training import Training

_logger = logging.getLogger("slowmo_hvd")
# torch.optim.Optimizer keeps its hooks under these names, and leaves them out of copies.
_HOOKS = tuple(
    f"_optimizer_{event}_{when}_hooks"
    for event in ("step", "state_dict", "load_state_dict")
    for when in ("pre", "post")
)


class DistributedOptimizer(torch.optim.Optimizer):
    """SlowMo around any torch optimizer, in the place of Horovod's DistributedOptimizer.

    Each worker takes ``sync_period`` (τ) steps of ``optimizer`` on its own gradients; then the
    workers average their displacements d̄ by one allreduce, and a slow momentum step follows
    (arXiv 1910.00643, Algorithm 1; γ is the learning rate):

        u ← β u + d̄ / γ
        x ← x_0 - α γ u

    Use it as the optimizer it wraps: ``param_groups``, ``state`` and ``defaults`` are that
    optimizer's own, so schedulers, GradScaler, closures and hooks work. Communication happens
    in `step`, `flush` and, to agree on one start, in the first step; nowhere else.

    Parameters may be frozen, thawed, added, removed and replaced, on every rank before the same
    step: the next one begins with an agreement on what there is. Those with requires_grad=False
    are neither moved nor sent, and their slow momentum is dropped.

    Args:
        optimizer: the inner optimizer, any ``torch.optim.Optimizer`` with a learning rate "lr".
            One of your own that keeps copies of the weights in its state and steps in them says
            so by an attribute with the state's keys, such as ``second_copies = ("z",)``: they
            take part in each sync. Those of schedule-free optimizers are known.
        named_parameters: ``model.named_parameters()``; checked as Horovod checks it. The ranks
            compare the names, so that one which lists its parameters in another order is found.
            Without names two of one shape and dtype are averaged with each other in silence.
        compression: ``hvd.Compression.none`` or ``.fp16``, for the displacements on the wire;
            they are scaled to fit. Averaged buffers are not compressed.
        backward_passes_per_step: backward passes before each `step`; their gradients add up.
        op: ``hvd.Average``, the only reduction that SlowMo knows.
        gradient_predivide_factor: only 1.0; SlowMo sends no gradients.
        num_groups: only 0, likewise.
        groups: only None, likewise.
        sparse_as_dense: give the inner optimizer dense gradients in place of sparse ones, unless
            it is SparseAdam, which takes no others.
        process_set: the ranks that train together. On other ranks the optimizer stays local.
        sync_period: τ, local steps between two averages, >= 1. Or a callable: called with the local
            steps taken when a window begins, it returns that window's τ; or ``hvd.schedules.qsr``.
            It must give the same on every rank: that is compared at each window's start.
        slow_lr: α, the slow learning rate, > 0. Or a callable of t, the number of windows that have
            ended before the one that ends, likewise.
        slow_momentum: β, the slow momentum, 0 <= β < 1; 0 is Local SGD. Or a callable of t.
        nesterov: the outer step in the Nesterov form of ``torch.optim.SGD`` (DiLoCo's).
        buffers: "maintain", "reset" or "average" the inner optimizer's buffers where a window
            begins. The paper resets SGD's momentum. A reset takes back all that a step has left:
            numbers that the optimizer counts in its groups too. LBFGS must be reset.
        warmup_steps: the number of first steps that are each followed by a plain average.
        on_nonfinite: what a sync does with a worker whose weights are not finite: "exclude" it
            from the average, give it the others' model and begin its buffers afresh, or "raise"
            FloatingPointError on every worker. Without a finite worker it always raises.
        outlier_factor: k; a sync leaves out each worker that has moved more than k times as far as
            the workers' median, as one whose weights are not finite; > 1, or None for no such
            guard. It costs one more pass over the weights. With 2 workers, whose median is their
            mean, only k < 2 can leave one out.
        clip_displacement: φ; where the averaged displacement over γ, the learning rate, is longer
            than this, the outer step is taken from one that is as long; > 0, or None for no such
            guard. Its size is that of a gradient times τ: take a multiple of ``displacement_norm``
            over ``learning_rates`` in the records of a sound run. It is the Euclidean norm over
            all parameters, or over a fragment's. The sums are kept until all have come: another
            copy of the model for the time of a sync.
        bucket_bytes: what a sync sends at once, >= 8. Three buckets need memory, beside the slow
            state; more of them hide more of the arithmetic behind the wire.
        overlap_steps: d, the local steps that go on while an average is under way; none is lost.
            0 <= d < τ. With 0 training waits for it, as in the paper. It costs a copy of what is
            under way.
        fragments: F, the parts in which the parameters travel, each once in τ steps, one after the
            other; 1 <= F <= τ. So F times less travels at once. With `overlap_steps` it is
            Streaming DiLoCo (arXiv 2501.18512), but that no step is lost.

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
        sync_period: SyncPeriod = 12,
        slow_lr: OfWindow = 1.0,
        slow_momentum: OfWindow = 0.5,
        nesterov: bool = False,
        buffers: str = "maintain",
        warmup_steps: int = 0,
        on_nonfinite: str = "exclude",
        bucket_bytes: int = 10 * 2**20,
        overlap_steps: int = 0,
        fragments: int = 1,
        outlier_factor: float | None = None,
        clip_displacement: float | None = None,
    ) -> None:
        # Not super().__init__(): it would replace the inner optimizer's state and groups.
        check_inner(optimizer)
        named = check_names(named_parameters, optimizer)
        check_op(op, hvd)
        refuse_gradient_arguments(
            gradient_predivide_factor=(gradient_predivide_factor, 1.0),
            num_groups=(num_groups, 0),
            groups=(groups, None),
        )
        self.backward_passes_per_step = check_backward_passes(backward_passes_per_step)
        config = SlowMoConfig(
            sync_period=sync_period,
            slow_lr=slow_lr,
            slow_momentum=slow_momentum,
            nesterov=nesterov,
            buffers=buffers,
            warmup_steps=warmup_steps,
            on_nonfinite=on_nonfinite,
            bucket_bytes=bucket_bytes,
            overlap_steps=overlap_steps,
            fragments=fragments,
            outlier_factor=outlier_factor,
            clip_displacement=clip_displacement,
        )
        check_compression(compression)
        check_flag("sparse_as_dense", sparse_as_dense)
        check_process_set(process_set, hvd)
        self._inner = optimizer
        self._sparse_as_dense = sparse_as_dense
        self._training = Training(
            optimizer, config, compression=compression, process_set=process_set, named=named
        )
        self._make_hooks()

    def _make_hooks(self) -> None:
        for name in _HOOKS:
            setattr(self, name, OrderedDict())

    # ---- the inner optimizer's own -------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The inner optimizer's, never a copy: its load_state_dict replaces the list."""
        return self._inner.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        self._inner.param_groups = value

    @property
    def state(self) -> Any:
        """The inner optimizer's; the slow state is not in it, but in `state_dict`."""
        return self._inner.state

    @state.setter
    def state(self, value: Any) -> None:
        self._inner.state = value

    @property
    def defaults(self) -> dict[str, Any]:
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

    def __setattr__(self, name: str, value: Any) -> None:
        """Write what is the inner optimizer's there, if it is not private or GradScaler's.

        Raises:
            AttributeError: it is a setting of SlowMo's, which cannot change any more.
        """
        inner = self.__dict__.get("_inner")
        ours = name.startswith("_") or name in ("found_inf", "grad_scale") or name in self.__dict__
        if inner is not None and not ours and not hasattr(type(self), name):
            if hasattr(inner, name):
                setattr(inner, name, value)
                return
            refuse_late(name, value)
        super().__setattr__(name, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the inner optimizer. Every rank does so before the same step.

        Its anchor is taken, from the lowest rank, when the next step begins.

        Raises:
            ValueError: it has no learning rate, or a parameter of which a rank holds a part.
        """
        self._inner.add_param_group(param_group)
        try:
            check_groups(self._inner)
        except ValueError:
            self._inner.param_groups.pop()
            raise

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the inner optimizer's."""
        self._inner.zero_grad(set_to_none=set_to_none)

    def __repr__(self) -> str:
        settings = ", ".join(
            f"{name}={value!r}" for name, value in self._training.engine.config.asdict().items()
        )
        return f"DistributedOptimizer({settings}) around {self._inner!r}"

    # ---- Horovod's own -------------------------------------------------------------------

    @property
    def process_set(self) -> Any:
        """The ranks that train together."""
        return self._training.process_set

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

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator, no-untyped-call]
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One local step, and the sync that it makes due.

        Under GradScaler a step whose gradients overflowed on this rank is left out here, and
        still counts.

        Returns:
            What the inner optimizer's step returns.

        Raises:
            ValueError: in the first step, or where the parameters have changed, on every rank, if
                the ranks do not agree on the configuration, the model or the position.
            RuntimeError: in a sync, on every rank, if the ranks are in different ones, or some of
                them and not all have changed the parameters.
        """
        args: Any = (self,) if closure is None else (self, closure)
        kwargs: dict[str, Any] = {}
        for pre_hook in list(self._optimizer_step_pre_hooks.values()):
            changed = pre_hook(self, args, kwargs)
            if changed is not None:
                args, kwargs = changed
        loss = self._counted_step(*args[1:], **kwargs)
        for post_hook in list(self._optimizer_step_post_hooks.values()):
            post_hook(self, args, kwargs)
        return loss

    # torch would wrap our step in its global hooks too, and they fire for the inner step already.
    step.hooked = True

    def _counted_step(self, closure: Callable[[], float] | None = None) -> float | None:
        if not self._inner.state and is_initialising_state():  # on this rank alone, with zeros
            return None if is_distributed_checkpoint() else self._local_step(closure)
        self._training.before_step()
        lrs = [group["lr"] for group in self.param_groups]
        loss = self._local_step(closure)
        self._training.after_step(lrs)
        return loss

    def _local_step(self, closure: Callable[[], float] | None) -> float | None:
        if gradients.overflowed(self):
            return None
        gradients.unscale(self)
        if self._sparse_as_dense and not gradients.takes_sparse_only(self._inner):
            closure = gradients.densify(self, closure)
        return self._inner.step() if closure is None else self._inner.step(closure)

    def contribute(self, samples: int) -> None:
        """Weight the averages by samples: this worker's next step is of so many.

        To be called before each ``step()``, on every rank or on none: the average that ends a
        window is then Σ n_i d^i / Σ n_i, where n_i is what worker i has counted in the window. It
        is for batches, or windows, that are not equally large on all ranks. γ, averaged buffers and
        BatchNorm's statistics are plain means as ever.

        Args:
            samples: examples, or tokens, or whatever the loss is a mean of; >= 0. Several calls
                before one step add up.

        Raises:
            TypeError, ValueError: it is no int >= 0.
            RuntimeError: in the sync, on every rank, where some have counted and some have not.
        """
        self._training.engine.contribute(check_integer("samples", samples, least=0))

    def flush(self, model: torch.nn.Module | None = None) -> None:
        """End the window early, with a sync as at its end, so that all ranks hold one model.

        For saving and evaluation: training goes on with a fresh window. The running statistics of
        ``model`` (BatchNorm's), which are each worker's own while it trains, become their mean over
        the workers where they are finite. A collective: every rank calls it after the same step.
        At a window's start it averages the statistics alone, and without a model does nothing. A
        schedule-free optimizer may be in either mode, ``train()`` or ``eval()``.

        Args:
            model: whose persistent floating-point buffers to average, the same on every rank.

        Raises:
            TypeError: ``model`` is no module.
            ValueError: on every rank, if the ranks' models differ in their buffers.
        """
        check_model(model)
        self._training.flush(model)

    def register_sync_hook(self, hook: Callable[[SyncRecord], None]) -> RemovableHandle:
        """Have ``hook(record)`` called after each sync, for a logger.

        It is called on the ranks that registered it, so it must not communicate unless all did.

        Raises:
            TypeError: ``hook`` cannot be called.

        Returns:
            A handle whose ``remove()`` takes the hook back.
        """
        if not callable(hook):
            raise TypeError(f"hook must be callable, got {hook!r}")
        handle = RemovableHandle(self._training.engine.hooks)
        self._training.engine.hooks[handle.id] = hook
        return handle

    @property
    def sync_stats(self) -> SyncStats:
        """The syncs of this optimizer in this process: how many, bytes, seconds, the latest."""
        return self._training.engine.stats

    # ---- checkpoints and copies ------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state_dict, and the slow state under "slowmo".

        Builtins and tensors only, so that ``torch.load(weights_only=True)`` reads it. The
        tensors are the live ones, as in torch: copy them if training goes on before they are
        saved. `slowmo_hvd.core.state` describes the slow state.

        Raises:
            RuntimeError: torch's ``get_optimizer_state_dict`` or ``get_state_dict`` calls, which
                would drop the slow state; or a sync of this optimizer was broken off.
        """
        _refuse_distributed_checkpoint()
        for pre_hook in list(self._optimizer_state_dict_pre_hooks.values()):
            pre_hook(self)
        state: dict[str, Any] = dict(self._inner.state_dict())
        state["slowmo"] = slow_state(self._training, state)
        for post_hook in list(self._optimizer_state_dict_post_hooks.values()):
            changed = post_hook(self, state)
            if changed is not None:
                state = changed
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, wholly or, on any error, not at all.

        A checkpoint of the bare inner optimizer, or of Horovod's DistributedOptimizer, loads
        too: the slow state then begins afresh, and one info line says so.

        Load on every rank, or on one and then call ``hvd.broadcast_optimizer_state`` on all: the
        next step compares notes with the other ranks.

        Raises:
            ValueError: the state does not fit this optimizer; nothing has changed.
            RuntimeError: torch's ``set_optimizer_state_dict`` or ``set_state_dict`` calls.
        """
        _refuse_distributed_checkpoint()
        state_dict = _as_dict(state_dict)
        for pre_hook in list(self._optimizer_load_state_dict_pre_hooks.values()):
            changed = pre_hook(self, state_dict)
            if changed is not None:
                state_dict = _as_dict(changed)
        fresh = "slowmo" not in state_dict
        saved = state_dict.pop("slowmo", None)
        if not fresh:
            check_slow_state(self._training, saved, state_dict)
        with unchanged_on_error(self._inner):
            load_inner(self._inner, state_dict, ours=not fresh)
            load_slow_state(self._training, saved)
        if fresh:
            _logger.info("no slow state in this checkpoint: the slow momentum begins afresh")
        for post_hook in list(self._optimizer_load_state_dict_post_hooks.values()):
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        """For deepcopy and pickle: all but the hooks and what a scheduler patched in."""
        return {
            name: value
            for name, value in self.__dict__.items()
            if name != "step" and name not in _HOOKS
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_hooks()


def _as_dict(state_dict: Any) -> dict[str, Any]:
    if not isinstance(state_dict, Mapping):
        raise refusal(f"it is a {type(state_dict).__name__}, not what state_dict() returned")
    return dict(state_dict)


def _refuse_distributed_checkpoint() -> None:
    # After DCP's own call of step() to fill an empty state, or the learning rate would stay at 0.
    if is_distributed_checkpoint():
        raise RuntimeError(
            "torch.distributed.checkpoint.state_dict would drop SlowMo's slow state: save "
            "optimizer.state_dict() by torch.save, and load that by optimizer.load_state_dict; a "
            "bare optimizer's checkpoint goes into that optimizer before it is wrapped"
        )
