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
    """SlowMo around any torch optimizer. It replaces Horovod's DistributedOptimizer.

    Each worker takes ``sync_period`` (τ) steps of ``optimizer`` on its own gradients. Then the
    workers average their displacements d̄ with one allreduce and take a slow momentum step (arXiv
    1910.00643, Algorithm 1; γ is the learning rate):

        u ← β u + d̄ / γ
        x ← x_0 - α γ u

    Use it like the optimizer that it wraps: ``param_groups``, ``state`` and ``defaults`` are that
    optimizer's own, so schedulers, GradScaler, closures and hooks work. Only `step` and `flush`
    communicate. In the first step the ranks also agree on one start.

    Parameters can be frozen, thawed, added, removed and replaced, if every rank does so before the
    same step. In the next step the ranks agree on the new parameters. Parameters with
    requires_grad=False are neither moved nor sent, and their slow momentum is dropped.

    Args:
        optimizer: the inner optimizer, any ``torch.optim.Optimizer`` with a learning rate "lr". If
            an optimizer of your own keeps copies of the weights in its state and steps in them,
            give it an attribute with the state's keys, such as ``second_copies = ("z",)``. The
            copies then take part in each sync. The copies of schedule-free optimizers are known.
        named_parameters: ``model.named_parameters()``, checked as Horovod checks it. The ranks
            compare the names, so a rank that lists its parameters in another order is found.
            Without names, such a rank averages parameters of the same shape and dtype with the
            wrong ones, and nothing warns of it.
        compression: ``hvd.Compression.none`` or ``.fp16``, the compression of the displacements on
            the wire. They are scaled to fit. Averaged buffers are not compressed.
        backward_passes_per_step: the number of backward passes before each `step`. Their gradients
            add up.
        op: ``hvd.Average``, the only reduction that SlowMo supports.
        gradient_predivide_factor: must be 1.0; SlowMo sends no gradients.
        num_groups: must be 0; SlowMo sends no gradients.
        groups: must be None; SlowMo sends no gradients.
        sparse_as_dense: whether to give the inner optimizer dense gradients instead of sparse ones.
            SparseAdam always gets sparse gradients, because it takes no others.
        process_set: the ranks that train together. On other ranks all steps stay local.
        sync_period: τ, the number of local steps between two averages, >= 1. It can also be
            ``hvd.schedules.qsr``, or a callable that gets the number of local steps taken when a
            window begins and returns the τ of that window. A callable must return the same value on
            every rank; the ranks compare it when each window begins.
        slow_lr: α, the slow learning rate, > 0. It can also be a callable of t, the number of
            windows that ended before the one that ends now. A callable must return the same value
            on every rank.
        slow_momentum: β, the slow momentum, 0 <= β < 1. With 0 the algorithm is Local SGD. It can
            also be a callable of t, as for ``slow_lr``.
        nesterov: whether to take the outer step in the Nesterov form of ``torch.optim.SGD``, as
            DiLoCo does.
        buffers: what happens to the inner optimizer's buffers when a window begins: "maintain",
            "reset" or "average". The paper resets SGD's momentum. A reset undoes everything that
            the steps have left behind, including numbers that the optimizer counts in its groups.
            LBFGS needs "reset".
        warmup_steps: the number of steps at the start of training that are each followed by a plain
            average.
        on_nonfinite: what a sync does with a worker whose weights are not finite. "exclude" leaves
            it out of the average, gives it the others' model and resets its buffers. "raise" raises
            FloatingPointError on every worker. If no worker is finite, FloatingPointError is always
            raised.
        outlier_factor: k, > 1, or None to exclude no outliers. A sync excludes each worker that has
            moved more than k times as far as the workers' median, and treats it as "exclude" treats
            a worker whose weights are not finite. It costs one more pass over the weights. With 2
            workers the median is their mean, so only k < 2 can exclude one.
        clip_displacement: φ, > 0, or None for no clipping. It is the largest norm of the averaged
            displacement divided by γ, the learning rate; the outer step scales a longer one down to
            φ. This norm has the size of a gradient's norm times τ. To choose φ, take a multiple of
            ``displacement_norm`` divided by ``learning_rates`` in the records of a run that went
            well. The norm is Euclidean, over all parameters or over those of one fragment. All sums
            are kept until the last one has arrived, which needs memory for one more copy of the
            model during a sync.
        bucket_bytes: the number of bytes that a sync sends at once, >= 8. Three buckets are in
            memory, in addition to the slow state. With more buckets, more of the arithmetic is
            hidden behind the communication.
        overlap_steps: d, the number of local steps taken while an average is under way, 0 <= d < τ.
            No step is lost. With 0, training waits for the average, as in the paper. It needs
            memory for a copy of the parameters that are under way.
        fragments: F, the number of parts in which the parameters travel, 1 <= F <= τ. Each part
            travels once in τ steps, one part after the other, so F times less travels at once.
            Together with `overlap_steps` this is Streaming DiLoCo (arXiv 2501.18512), except that
            no step is lost.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range or has no meaning for SlowMo, or the optimizer is
            distributed already.
    """

    # GradScaler then calls step() for every attempt, also for one that overflowed only on this
    # rank. It still counts. Otherwise the ranks' schedules would diverge and the next sync would
    # hang.
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
        slow_momentum: OfWindow = 0.2,
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
        """The inner optimizer's list itself, not a copy: its load_state_dict replaces the list."""
        return self._inner.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        self._inner.param_groups = value

    @property
    def state(self) -> Any:
        """The inner optimizer's state. The slow state is not in it, but in `state_dict`."""
        return self._inner.state

    @state.setter
    def state(self, value: Any) -> None:
        self._inner.state = value

    @property
    def defaults(self) -> dict[str, Any]:
        """The inner optimizer's defaults."""
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
        """Set an attribute of the inner optimizer there, unless it is private or GradScaler's.

        Raises:
            AttributeError: it is one of SlowMo's settings, which cannot change any more.
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
        """Add a group to the inner optimizer. Every rank must do so before the same step.

        When the next step begins, all ranks take the lowest rank's values of the group as its
        anchor.

        Raises:
            ValueError: the group has no learning rate, or has a parameter of which this rank holds
                only a part.
        """
        self._inner.add_param_group(param_group)
        try:
            check_groups(self._inner)
        except ValueError:
            self._inner.param_groups.pop()
            raise

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Call the inner optimizer's ``zero_grad``."""
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
        """Do nothing: gradients stay local, so they can be clipped as soon as they exist."""

    @contextlib.contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """Do nothing, for scripts that call `synchronize` and then `step` in this context.

        Such a step counts like any other, and can end a window.
        """
        yield

    def set_backward_passes_per_step(self, passes: int) -> None:
        """Set ``backward_passes_per_step``. It does not change the arithmetic here."""
        self.backward_passes_per_step = check_backward_passes(passes)

    # ---- training ------------------------------------------------------------------------

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator, no-untyped-call]
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one local step, and synchronise if that is due.

        Under GradScaler, a step whose gradients overflowed on this rank is skipped here, and still
        counts.

        Returns:
            What the inner optimizer's step returns.

        Raises:
            ValueError: in the first step, or after the parameters have changed, on every rank, if
                the ranks do not agree on the configuration, the model or the position.
            RuntimeError: in a sync, on every rank, if the ranks are in different syncs, or if some
                ranks have changed the parameters and others have not.
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

    # torch would also call its global hooks around our step; they already run for the inner step.
    step.hooked = True

    def _counted_step(self, closure: Callable[[], float] | None = None) -> float | None:
        if not self._inner.state and is_initialising_state():  # only on this rank, with zeros
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
        """Count the samples of this worker's next step, to weight the averages by them.

        Call this before each ``step()``, on every rank or on none. The average that ends a window
        is then Σ n_i d^i / Σ n_i, where n_i is what worker i has counted in the window. Use it for
        batches, or windows, that are not equally large on all ranks. γ, averaged buffers and
        BatchNorm's statistics remain plain means.

        Args:
            samples: the number of examples, of tokens, or of whatever the loss is a mean of; an
                int >= 0. Several calls before one step add up.

        Raises:
            TypeError, ValueError: ``samples`` is not an int >= 0.
            RuntimeError: in the sync, on every rank, if some ranks have counted samples and others
                have not.
        """
        self._training.engine.contribute(check_integer("samples", samples, least=0))

    def flush(self, model: torch.nn.Module | None = None) -> None:
        """End the window early with a sync, so that all ranks have the same model.

        Use it before saving and evaluation. Training goes on with a new window. While a model
        trains, its running statistics (BatchNorm's) are each worker's own; this sets those of
        ``model`` to their mean over the workers where they are finite. At the start of a window it
        averages only the statistics, and without a model it then does nothing. A schedule-free
        optimizer can be in either mode, ``train()`` or ``eval()``. This is a collective: every rank
        calls it after the same step.

        Args:
            model: the module whose persistent floating-point and complex buffers to average, the
                same on every rank.

        Raises:
            TypeError: ``model`` is not a module.
            ValueError: on every rank, if the ranks' models differ in their buffers.
        """
        check_model(model)
        self._training.flush(model)

    def register_sync_hook(self, hook: Callable[[SyncRecord], None]) -> RemovableHandle:
        """Call ``hook(record)`` after each sync, for example to log it.

        The hook is called on the ranks that registered it. So it must not communicate unless all
        ranks did.

        Raises:
            TypeError: ``hook`` is not callable.

        Returns:
            A handle whose ``remove()`` removes the hook.
        """
        if not callable(hook):
            raise TypeError(f"hook must be callable, got {hook!r}")
        handle = RemovableHandle(self._training.engine.hooks)
        self._training.engine.hooks[handle.id] = hook
        return handle

    @property
    def sync_stats(self) -> SyncStats:
        """Totals over this optimizer's syncs in this process, and the record of the latest one."""
        return self._training.engine.stats

    # ---- checkpoints and copies ------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the inner optimizer's state_dict, with the slow state under "slowmo".

        It has only builtins and tensors, so that ``torch.load(weights_only=True)`` reads it. As in
        torch, the tensors are not copies: copy them if training goes on before they are saved.
        `slowmo_hvd.core.state` describes the slow state.

        Raises:
            RuntimeError: torch's ``get_optimizer_state_dict`` or ``get_state_dict`` calls this, and
                would drop the slow state; or a sync of this optimizer failed partway.
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
        """Load what `state_dict` returned. If there is any error, nothing changes.

        A checkpoint of the bare inner optimizer, or of Horovod's DistributedOptimizer, loads too.
        The slow state then starts from scratch, and one info line in the log says so.

        Load on every rank; or load on one, and then call ``hvd.broadcast_optimizer_state`` on all.
        In the next step the ranks check that they agree.

        Raises:
            ValueError: the state does not fit this optimizer; nothing has changed.
            RuntimeError: torch's ``set_optimizer_state_dict`` or ``set_state_dict`` calls this.
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
        """For deepcopy and pickle: everything except the hooks and what a scheduler patched in."""
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
    # Only after DCP's own call of step() to fill an empty state: DCP sets the learning rate to 0
    # for it, and an error there would leave it at 0.
    if is_distributed_checkpoint():
        raise RuntimeError(
            "torch.distributed.checkpoint.state_dict would drop SlowMo's slow state: save "
            "optimizer.state_dict() by torch.save, and load that by optimizer.load_state_dict; a "
            "bare optimizer's checkpoint goes into that optimizer before it is wrapped"
        )
