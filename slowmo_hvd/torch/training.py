"""One torch optimizer's training: the engine between its steps, on parameters that can change."""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar, cast

import horovod.torch as hvd
import torch
from torch import Tensor

from slowmo_hvd.core.agreement import class_name, figures_of, unequal_start
from slowmo_hvd.core.buckets import total_bytes
from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.elastic_job import ONE_STEP, before_run
from slowmo_hvd.core.engine import Engine
from slowmo_hvd.core.peers import Peer, take_anchor
from slowmo_hvd.core.roll_call import frozen_without
from slowmo_hvd.core.warn import warn
from slowmo_hvd.torch.arguments import check_groups
from slowmo_hvd.torch.buffers import Buffers
from slowmo_hvd.torch.callers import refuse_schedule_free_around
from slowmo_hvd.torch.frozen import take_roots
from slowmo_hvd.torch.module_buffers import average_buffers
from slowmo_hvd.torch.parameters import Names, Parameters
from slowmo_hvd.torch.second_copies import in_train_mode
from slowmo_hvd.torch.tensors import SlowModel
from slowmo_hvd.torch.transport import Transport, stall_watch

_logger = logging.getLogger("slowmo_hvd")
_Method = TypeVar("_Method", bound=Callable[..., None])
_AnyMethod = TypeVar("_AnyMethod", bound=Callable[..., Any])
# A compiled training step leaves the graph here: collectives and clocks cannot be traced.
_eager: Callable[[_Method], _Method] = torch.compiler.disable


def _plain(method: _AnyMethod) -> _AnyMethod:
    """Run without a graph, and with tensors that are writable after ``torch.inference_mode()``."""
    return torch.inference_mode(False)(torch.no_grad()(method))


class Training:
    """Counts local steps, synchronises when the schedule says so, and holds the slow state.

    Call `before_step` and `after_step` around every attempted step of the inner optimizer, on every
    rank of the process set. All collectives of the PyTorch adapter start here.

    Attributes:
        engine: counts and synchronises.
        inner: the inner optimizer.
        known: the parameters to which the slow state belongs; None before the first step.
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
        self.inner = inner
        self._compression = compression
        none = compression is hvd.Compression.none
        self._transport = Transport(process_set, None if none else compression)
        self._buffers = Buffers(inner, config, self._transport)
        self.engine = Engine(config, self._transport, self._buffers, len(inner.param_groups))
        self._peer = Peer()
        self._names = Names(named)
        self.begin_afresh()
        self._begin_unshared()

    def begin_afresh(self) -> None:
        """Go back to no step taken: u_0 = 0, and no anchor until the first step begins."""
        self.engine.begin_afresh(len(self.inner.param_groups))
        self.known: Parameters | None = None
        self._agreed = False

    def _begin_unshared(self) -> None:
        """Set what a copy does not take from its original."""
        self._agreed = False
        self._local = False  # whether this step is the one before `hvd.elastic.run`
        self._told_of_gradients = False
        self._spare: SlowModel | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_unshared()

    @property
    def slow(self) -> SlowModel | None:
        """The slow state; None before the first step."""
        return cast("SlowModel | None", self.engine.slow)

    @property
    def process_set(self) -> Any:
        """The ranks that train together."""
        return self._transport.process_set

    @property
    def member(self) -> bool:
        """Whether this rank trains in the process set. If not, all its steps are local."""
        return self._transport.member

    @_eager
    def before_step(self) -> None:
        """Agree with the other ranks on one start, unless nothing has changed since they agreed."""
        if self.member:
            self.engine.check()
            if not self._agreed and before_run():  # equal on every rank, see there
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
        rates = (lr.detach() if isinstance(lr, Tensor) else lr for lr in lrs)
        if self.engine.count(rates):
            self._synchronise(self.engine.act)

    @_eager
    def flush(self, model: torch.nn.Module | None = None) -> None:
        """Synchronise now, unless a window has just begun; average the model's buffers.

        It is equal on every rank, because it depends on counters and on the argument. If some ranks
        gave no model, the comparison after a sync finds it; but at the start of a window, these
        ranks do not take part.
        """
        syncs = self.engine.parted
        if self.engine.schedule.step == 0 or not self.member or not (syncs or model is not None):
            return
        self.engine.check()
        if syncs:
            with in_train_mode(self.inner):
                self._synchronise(self.engine.flush)
        else:
            self._agree(stepping=False)
        self._average_buffers(model)

    @_plain
    def _average_buffers(self, model: torch.nn.Module | None) -> None:
        step = self.engine.schedule.step
        where = f"the average of the model's buffers after step {step}"
        with self.engine.together(where, f"in {where}, which every rank gives to flush()"):
            name, bucket_bytes = f"{self.engine.name}.model", self.engine.config.bucket_bytes
            said = average_buffers(model, self._transport, name, step, bucket_bytes)
        warn(said)

    def groups(self) -> list[list[Tensor]]:
        """The parameters of each parameter group, as they are now."""
        return [group["params"] for group in self.inner.param_groups]

    def _agree(self, *, stepping: bool) -> None:
        """Agree on one start for all ranks: first, after a load, or with other parameters.

        All ranks come here together if the optimizer is new or was loaded, because a script does
        that on every rank. If some ranks loaded and others did not, all are here in their first
        step, and the figures show it. Parameters may change on one rank alone: see `Engine.meet`.

        Args:
            stepping: whether a step begins, where a changed ``requires_grad`` counts, and not a
                sync, where it does not: scripts switch it off for a while, and may flush or save
                during that.
        """
        groups, known = self.groups(), self.known
        if not self._agreed or known is None:
            refuse_schedule_free_around()
            with self.engine.together("the first step", unnamed=True, warn_after=10):
                said = self._agree_on(Parameters(groups), None)
            warn(said)
            return
        if known.are(groups) and (known.switched_as if stepping else known.formed_as)(groups):
            return
        check_groups(self.inner)
        self.engine.land()  # on the old parameters; every rank that changed some does this
        now = Parameters(groups) if stepping else known.at_a_sync(groups)
        step, difference = self.engine.schedule.step, now.difference(known)
        _logger.info("other parameters after %d steps (%s): all ranks agree anew", step, difference)
        where, size = f"other parameters after step {step}", self._bytes(self.slow)
        with self.engine.together(
            f"the agreement on {where}", f"to agree on {where}", unnamed=True, size=size
        ):
            self.engine.meet()
            said = self._agree_on(now, known)
        warn(said)

    @_plain
    def _agree_on(self, now: Parameters, before: Parameters | None) -> list[str]:
        """Agree with the other ranks; return the warnings to give at the end."""
        names = self._names.of(now.groups)
        figures = figures_of(
            self.engine.config,
            self.engine.schedule,
            has_slow_state=self.slow is not None,
            compression=class_name(self._compression),
            groups=[[(tuple(p.shape), str(p.dtype)) for p in group] for group in now.groups],
            names=names,
            frozen=[names[where] if names else where for where in now.frozen],
            earlier_positions=now.places_in(before) if before else (),
            buffers=list(self._buffers.copies.names),
        )
        root = self._peer.agree(self.engine, figures)
        apart, excluded = self._freeze(now, before, root)
        slow, gaps = self._take_anchor(now, root)
        self.engine.rates = [now.follow(self.known, of_one) for of_one in self.engine.rates]
        self.engine.slow, self.known, self._agreed = slow, now, True
        self._buffers.agreed = ()  # a rank that is new here has not agreed on any
        # Warn only at the end: a script may turn warnings into errors, perhaps only on this rank.
        said = [frozen_without(excluded, self.engine.schedule.step)] if excluded else []
        differ = [gap for gap in (apart, *gaps) if gap != 0]  # also true of a NaN
        return said + ([unequal_start(hvd.rank(), root, max(differ))] if differ else [])

    def _freeze(
        self, now: Parameters, before: Parameters | None, root: int
    ) -> tuple[float, tuple[int, ...]]:
        """Set the parameters that are not trained to one value on all ranks, and leave them there.

        Those that were frozen inside a window take the workers' mean. For all that were not frozen
        before, the checksums are compared. All ranks do the same, because they agreed on which
        parameters these are.

        Returns:
            How far this rank's values were from the root's, and the ranks that are not in the mean.
        """
        excluded: tuple[int, ...] = ()
        since = now.frozen_since(before) if before else []
        if since and self.engine.parted:
            assert self.slow is not None
            part = self.slow_model(now.groups, since, momentum=False)
            part.inherit(self.slow)
            excluded = self.engine.take_mean(part, f"{self.engine.name}.frozen").excluded
        for where in since:
            now.all[where].grad = None  # from before it was frozen
        known = {id(before.all[where]) for where in before.frozen} if before else set()
        unknown = [now.all[where] for where in now.frozen if id(now.all[where]) not in known]
        if not unknown:
            return 0.0, excluded
        name = f"{self.engine.name}.frozen_start"
        bucket_bytes = self.engine.config.bucket_bytes
        return take_roots(unknown, root, self._transport, name, bucket_bytes), excluded

    def _drop_gradients(self) -> None:
        """Drop the gradients of frozen parameters, so that the inner step does not move them.

        They are not averaged, so they would differ between ranks.
        """
        assert self.known is not None
        frozen = map(self.known.all.__getitem__, self.known.frozen)
        given = [param for param in frozen if param.grad is not None]
        for param in given:
            param.grad = None
        if given and not self._told_of_gradients:
            self._told_of_gradients = True
            warn(
                [
                    f"{len(given)} parameters with requires_grad=False have a gradient, and it is "
                    "dropped: SlowMo neither trains nor averages them; set requires_grad=True to "
                    "have them trained"
                ]
            )

    def reusable(self, now: Parameters) -> SlowModel | None:
        """The current slow state, if it belongs to exactly these parameters; otherwise None."""
        slow, known = self.slow, self.known
        if slow is None or known is None or set(slow.params) != set(now.trained):
            return None
        return slow if known.are(now.groups) and known.formed_as(now.groups) else None

    def make_spare(self, held: Collection[int], launched: Collection[int]) -> SlowModel:
        """A new slow state for these positions, to receive one that may still be refused."""
        fragments = self.engine.config.fragments
        self._spare = self.slow_model(self.groups(), held, fragments=fragments)
        self._spare.launch_those_of(launched)
        return self._spare

    def take_spare(self) -> SlowModel | None:
        """That slow state, if one was made. It is no longer kept here."""
        spare, self._spare = self._spare, None
        return spare

    def extended(self, now: Parameters) -> tuple[SlowModel, set[int]]:
        """The slow state of ``now``'s parameters, and the positions of those that had one.

        The others are anchored where they are.
        """
        same = self.reusable(now)
        if same is not None:  # a second one would need as much memory again
            return same, set(same.params)
        fragments = self.engine.config.fragments
        slow = self.slow_model(now.groups, now.trained, fragments=fragments)
        return slow, slow.inherit(self.slow) if self.slow else set()

    def slow_model(
        self,
        groups: Sequence[Sequence[Tensor]],
        held: Collection[int],
        *,
        momentum: bool = True,
        fragments: int = 1,
    ) -> SlowModel:
        """A slow state of the parameters at these positions, anchored where they are."""
        config = self.engine.config
        return SlowModel(
            groups,
            held,
            with_momentum=momentum and config.has_momentum,
            bucket_bytes=config.bucket_bytes,
            fragments=fragments,
        )

    def _take_anchor(self, now: Parameters, root: int) -> tuple[SlowModel, list[float]]:
        """Anchor all parameters at the root's values, or at its anchor if they had an anchor.

        Returns:
            The slow state, and how far this rank's anchors were from the root's.
        """
        slow, old = self.extended(now)
        size, name = self._bytes(slow), f"{self.engine.name}.anchor"
        with (
            self.engine.all_or_torn("the sending of the first weights"),
            stall_watch.sending(self.engine, "in sending the first weights", size=size),
        ):
            gaps = take_anchor(slow, self._transport, name, mine=hvd.rank() == root)
        slow.restart(set(now.trained) - old)
        return slow, gaps

    def _bytes(self, slow: SlowModel | None) -> int:
        """The size of its displacements on the wire, in bytes."""
        alone = slow is None or self._transport.alone
        return 0 if slow is None or alone else total_bytes(slow.buckets)

    @_plain
    def _synchronise(self, how: Callable[[], None]) -> None:
        self._agree(stepping=False)
        how()
