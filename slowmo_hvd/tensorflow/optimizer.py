"""DistributedOptimizer: τ local steps of any Keras optimizer, one allreduce, one slow step."""

import contextlib
import logging
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import horovod.tensorflow as hvd
import keras
import tensorflow as tf

from slowmo_hvd.core import schedules
from slowmo_hvd.core.arguments import (
    check_backward_passes,
    check_compression,
    check_op,
    check_process_set,
    refuse_gradient_arguments,
    refuse_late,
)
from slowmo_hvd.core.checks import check_flag
from slowmo_hvd.core.config import OfWindow, SlowMoConfig, SyncPeriod
from slowmo_hvd.core.records import SyncRecord, SyncStats
from slowmo_hvd.core.state import without_auto
from slowmo_hvd.tensorflow import checkpoint
from slowmo_hvd.tensorflow.arguments import (
    check_device,
    check_inner,
    check_samples,
    check_trained,
    compression_by_name,
    name_of_compression,
    process_set_by_ranks,
    refuse_arguments_of_the_inner,
    refuse_local,
)
from slowmo_hvd.tensorflow.context import (
    check_context,
    initialised,
    refuse_strategy,
)
from slowmo_hvd.tensorflow.leaves import accumulation_steps, groups_of, leaves
from slowmo_hvd.tensorflow.settings import OF_EVERY_OPTIMIZER, change, holder, is_setting
from slowmo_hvd.tensorflow.training import Training

_logger = logging.getLogger("slowmo_hvd")
_OF_WINDOWS = ("sync_period", "slow_lr", "slow_momentum")  # which may be functions
_Method = TypeVar("_Method", bound=Callable[..., Any])
# AutoGraph rewrites what a tf.function of the user's calls, and would rewrite this package too.
_as_written: Callable[[_Method], _Method] = tf.autograph.experimental.do_not_convert


@keras.saving.register_keras_serializable(package="slowmo_hvd")
class DistributedOptimizer(keras.optimizers.Optimizer):  # type: ignore[misc]
    """SlowMo around any Keras 3 optimizer, in the place of Horovod's DistributedOptimizer.

    Each worker takes ``sync_period`` (τ) steps of ``optimizer`` on its own gradients; then the
    workers average their displacements d̄ by one allreduce, and a slow momentum step follows
    (arXiv 1910.00643, Algorithm 1; γ is the learning rate):

        u ← β u + d̄ / γ
        x ← x_0 - α γ u

    Compile a model with it, or call `apply_gradients` in a loop of your own, eagerly or in
    ``tf.function``. What belongs to the steps is set on the inner optimizer: clipping, weight
    decay, averages of the weights (EMA), gradient accumulation, the learning-rate schedule.

    What ``layer.trainable = False`` freezes is neither moved nor sent from the next step on; its
    slow momentum is dropped, though not its memory. In ``fit`` that needs a new ``compile``, and
    in a ``tf.function`` of your own a new function. What is thawed begins from the lowest rank's
    values. All ranks must freeze and thaw alike, before the same step.

    Args:
        optimizer: the inner optimizer, any ``keras.optimizers.Optimizer``. Under the global
            policy mixed_float16 it gets a LossScaleOptimizer around it by ``model.compile``. One of
            your own that keeps copies of the weights and steps in them says so by an attribute
            with the names of its lists of variables, such as ``second_copies = ("zs",)``: a
            window then begins with them where the weights are.
        name: the optimizer's name.
        device_dense: where the displacements are summed; "" where Horovod thinks best.
        device_sparse: only ""; SlowMo sends no gradients.
        compression: ``hvd.Compression.none`` or ``.fp16``, for the displacements on the wire;
            they are scaled to fit. Averaged buffers are not compressed.
        sparse_as_dense: give the inner optimizer dense gradients in place of sparse ones.
        gradient_predivide_factor: only 1.0; SlowMo sends no gradients.
        op: ``hvd.Average``, the only reduction that SlowMo knows.
        backward_passes_per_step: gradients that add up before each step of the inner optimizer,
            by its ``gradient_accumulation_steps``. The steps count for ``sync_period``.
        average_aggregated_gradients: divide what has added up by ``backward_passes_per_step``.
        num_groups: only 0; SlowMo sends no gradients.
        groups: only None, likewise.
        process_set: the ranks that train together. On other ranks the optimizer stays local.
        scale_local_gradients: only True; SlowMo sends no gradients.
        sync_period: τ, local steps between two averages, >= 1. Or a callable: called with the local
            steps taken when a window begins, it returns that window's τ; or ``hvd.schedules.qsr``.
            It must give the same on every rank: that is compared at each window's start.
        slow_lr: α, the slow learning rate, > 0. Or a callable of t, the number of windows that have
            ended before the one that ends, likewise.
        slow_momentum: β, the slow momentum, 0 <= β < 1; 0 is Local SGD. Or a callable of t.
        nesterov: the outer step in the Nesterov form of ``torch.optim.SGD`` (DiLoCo's).
        buffers: "maintain", "reset" or "average" the inner optimizer's buffers where a window
            begins. The paper resets SGD's momentum.
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
        bucket_bytes: what a sync sends at once, >= 8. A few buckets need memory, beside the slow
            state; more of them hide more of the arithmetic behind the wire.
        overlap_steps: d, the local steps that go on while an average is under way; none is lost.
            0 <= d < τ. With 0 training waits for it, as in the paper. It costs a copy of the
            weights.
        fragments: F, the parts in which the variables travel, each once in τ steps, one after the
            other; 1 <= F <= τ. So F times less travels at once. With `overlap_steps` it is
            Streaming DiLoCo (arXiv 2501.18512), but that no step is lost.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, one without meaning for SlowMo, or an optimizer
            that is distributed already.
    """

    built: bool

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        name: str | None = None,
        device_dense: str = "",
        device_sparse: str = "",
        compression: Any = hvd.Compression.none,
        sparse_as_dense: bool = False,
        gradient_predivide_factor: float = 1.0,
        op: Any = hvd.Average,
        backward_passes_per_step: int = 1,
        average_aggregated_gradients: bool = False,
        num_groups: int = 0,
        groups: Any = None,
        process_set: Any = hvd.global_process_set,
        scale_local_gradients: bool = True,
        *,
        sync_period: SyncPeriod = 12,
        slow_lr: OfWindow = 1.0,
        slow_momentum: OfWindow = 0.5,
        nesterov: bool = False,
        buffers: str = "maintain",
        warmup_steps: int = 0,
        on_nonfinite: str = "exclude",
        bucket_bytes: int = 16 * 2**20,
        overlap_steps: int = 0,
        fragments: int = 1,
        outlier_factor: float | None = None,
        clip_displacement: float | None = None,
        **kwargs: Any,
    ) -> None:
        check_inner(optimizer, DistributedOptimizer)
        refuse_arguments_of_the_inner(kwargs)
        check_op(op, hvd)
        refuse_gradient_arguments(
            device_sparse=(device_sparse, ""),
            gradient_predivide_factor=(gradient_predivide_factor, 1.0),
            num_groups=(num_groups, 0),
            groups=(groups, None),
            scale_local_gradients=(scale_local_gradients, True),
        )
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
        check_device(device_dense)
        check_compression(compression)
        check_flag("sparse_as_dense", sparse_as_dense)
        check_flag("average_aggregated_gradients", average_aggregated_gradients)
        check_process_set(process_set, hvd)
        refuse_strategy()
        super().__init__(learning_rate=0.0, name=name or f"Distributed{type(optimizer).__name__}")
        for setting in OF_EVERY_OPTIMIZER:
            self.__dict__.pop(setting, None)  # they are the inner optimizer's
        self.sparse_as_dense = sparse_as_dense
        self.average_aggregated_gradients = average_aggregated_gradients
        self.backward_passes_per_step = check_backward_passes(backward_passes_per_step)
        self.inner_optimizer = optimizer  # from here on its settings can be written: __setattr__
        self._accumulate(self.backward_passes_per_step)
        self._compression = compression
        self._device_dense = device_dense
        self._training = Training(
            config, compression=compression, process_set=process_set, device=device_dense
        )
        self._model: Callable[[], Any] = lambda: None
        self._saved_weights: list[int] | None = None  # as in `get_config`

    def _accumulate(self, passes: int) -> None:
        if passes == 1:
            return
        for leaf in leaves(self.inner_optimizer):
            if leaf.gradient_accumulation_steps not in (None, passes):
                raise ValueError(
                    f"backward_passes_per_step={passes} and the inner optimizer's "
                    f"gradient_accumulation_steps={leaf.gradient_accumulation_steps} are two "
                    "answers to one question; give one of them"
                )
            leaf.gradient_accumulation_steps = passes

    # ---- the inner optimizer's own -------------------------------------------------------

    @property
    def learning_rate(self) -> Any:
        """The inner optimizer's."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.inner_optimizer.learning_rate = value

    @property
    def iterations(self) -> Any:
        """The inner optimizer's: its steps, those of a rank's overflow left out."""
        return self.inner_optimizer.iterations

    @property
    def variables(self) -> "CallableList":
        """The slow state, the counters, and all that the inner optimizer has."""
        self._training.engine.wait()  # nothing writes into what is read now
        return CallableList(self._variables + list(self.inner_optimizer.variables))

    @_as_written
    def scale_loss(self, loss: Any) -> Any:
        """As the inner optimizer's."""
        return self.inner_optimizer.scale_loss(loss)

    def exclude_from_weight_decay(self, *args: Any, **kwargs: Any) -> None:
        """As the inner optimizer's."""
        self.inner_optimizer.exclude_from_weight_decay(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Settings of the inner optimizer, such as momentum and beta_1, by which scripts and
        # callbacks know it.
        if name.startswith("_") or "inner_optimizer" not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(holder(self.inner_optimizer, name), name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Write what is the inner optimizer's there, with the effect that it has in bare Keras.

        Raises:
            AttributeError: it cannot change any more, or a MultiOptimizer has several.
        """
        inner = vars(self).get("inner_optimizer")
        if inner is not None and not name.startswith("_"):
            self._refuse_another_count(name, value)
            if name not in vars(self) and not hasattr(type(self), name):
                if is_setting(inner, name):
                    change(inner, name, value)
                    return
                refuse_late(name, value)
        super().__setattr__(name, value)

    def _refuse_another_count(self, name: str, value: Any) -> None:
        """Raise for another number of gradients for each step, where it is counted on already."""
        fixed = name == "backward_passes_per_step" or (
            name == "gradient_accumulation_steps"
            and (self.__dict__["built"] or self.backward_passes_per_step > 1)
        )
        if fixed and value != getattr(self, name):
            raise AttributeError(
                f"{name} cannot change from {getattr(self, name)} to {value!r} any more, since it "
                "is counted in the windows: set it on the inner optimizer before this one is made"
            )

    # ---- training ------------------------------------------------------------------------

    @property
    def process_set(self) -> Any:
        """The ranks that train together."""
        return self._training.process_set

    @_as_written
    def build(self, variables: Sequence[Any]) -> None:
        """Make the inner optimizer's variables and the slow state."""
        if self.built:
            return
        variables = self._with_frozen(list(variables))
        # Out of the graph that a step may be traced for: what is made there has no value yet. But
        # beside the model's variables if they have none either: an optimizer may look at them.
        outside = tf.init_scope() if initialised(variables) else contextlib.nullcontext()
        with outside, tf.name_scope(self.name):
            if not self.inner_optimizer.built:
                self.inner_optimizer.build(variables)
            groups = groups_of(self.inner_optimizer)
            if accumulation_steps(groups) < self.backward_passes_per_step:
                raise ValueError(
                    f"backward_passes_per_step={self.backward_passes_per_step} does not reach the "
                    "optimizers that MultiOptimizer's function makes: set "
                    "gradient_accumulation_steps on them"
                )
            self._training.build(groups, self.add_variable)
            # Not super().build(), which would make a second average of the weights (EMA) and the
            # like; and not by setattr, which would take the model's variables for the optimizer's.
            self.__dict__["_trainable_variables"] = variables
            self.built = True

    def _with_frozen(self, variables: list[Any]) -> list[Any]:
        """The variables, and where a model is loaded those that were frozen after training began.

        Keras builds a loaded optimizer with what is trained now; it was saved with more.
        """
        model = self._model()
        if self._saved_weights is None or model is None:
            return variables
        weights = dict(enumerate(model.weights))
        saved = [weights.get(position) for position in self._saved_weights]
        found = all(variable is not None for variable in saved)  # `in` would compare values
        fits = found and {*map(id, variables)} <= {*map(id, saved)}
        return saved if fits else variables

    def _positions(self) -> list[int] | None:
        """Where the variables are among the model's weights, if some of them are frozen."""
        model = self._model()
        if model is None or all(variable.trainable for variable in self._trainable_variables):
            return self._saved_weights
        places = {id(weight): position for position, weight in enumerate(model.weights)}
        found = [places.get(id(variable)) for variable in self._trainable_variables]
        return [position for position in found if position is not None]

    @_as_written
    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, Any]], **kwargs: Any) -> Any:
        """One local step, and the sync that it makes due.

        Args:
            grads_and_vars: pairs of this worker's own gradient and variable.
            kwargs: ``name`` and ``experimental_aggregate_gradients`` of Keras 2, without effect.

        Returns:
            The inner optimizer's count of steps.

        Raises:
            ValueError: in the first step, on every rank, if the ranks do not agree on the
                configuration, the model or the position.
        """
        unknown = set(kwargs) - {"name", "experimental_aggregate_gradients"}
        if unknown:
            raise TypeError(f"apply_gradients() got unexpected arguments: {sorted(unknown)}")
        grads, variables = zip(*grads_and_vars, strict=True)
        self.apply(grads, variables)
        return self.iterations

    @_as_written
    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """One local step, and the sync that it makes due.

        The first step takes the weights as the start of all ranks. In a ``tf.function`` that is
        where the function is traced: load or broadcast weights before, or they count as progress.

        A step whose gradients overflowed on this rank is left out by the LossScaleOptimizer
        inside, and still counts.

        Args:
            grads: this worker's own gradients.
            trainable_variables: a variable for each; may be left out once the optimizer is built.

        Raises:
            ValueError: as `apply_gradients`.
        """
        grads = list(grads)
        if not grads:
            return
        check_context()
        if not self.built:
            if trainable_variables is None:
                raise ValueError(
                    "the optimizer does not know its variables yet: give apply() the variables of "
                    "the gradients, or call optimizer.build(model.trainable_variables) first"
                )
            trainable_variables = list(trainable_variables)
            self.build(trainable_variables)
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
        check_trained(grads, trainable_variables or self._trainable_variables)
        self._training.before_step()
        learning_rates = self._training.learning_rates()
        self.inner_optimizer.apply(self._prepared(grads), trainable_variables)
        self._training.after_step(learning_rates)

    def _prepared(self, grads: list[Any]) -> list[Any]:
        if self.sparse_as_dense:
            grads = [
                tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in grads
            ]
        if self.backward_passes_per_step > 1 and not self.average_aggregated_gradients:
            # Keras takes the mean of what has added up, Horovod by default the sum.
            factor = self.backward_passes_per_step
            grads = [
                g if g is None else tf.math.scalar_mul(tf.cast(factor, g.dtype), g) for g in grads
            ]
        return grads

    @_as_written
    def contribute(self, samples: Any) -> None:
        """Weight the averages by samples: this worker's next step is of so many.

        To be called before each step, on every rank or on none: the average that ends a window is
        then Σ n_i d^i / Σ n_i, where n_i is what worker i has counted in the window. It is for
        batches, or windows, that are not equally large on all ranks. With ``fit`` a model's own
        ``train_step`` calls it. γ, averaged buffers and moving statistics are plain means as ever.

        Args:
            samples: examples, or tokens, or whatever the loss is a mean of; an int >= 0, or a
                tensor of one, such as ``tf.shape(x)[0]``. Several calls before one step add up.

        Raises:
            TypeError, ValueError: it is no int >= 0; of a tensor in a graph neither is seen.
            ValueError: the optimizer is not built yet.
            RuntimeError: in the sync, on every rank, where some have counted and some have not.
        """
        if not self.built:
            raise ValueError(
                "the optimizer does not know its variables yet: call "
                "optimizer.build(model.trainable_variables) before contribute()"
            )
        self._training.counters.contribute(check_samples(samples))

    @_as_written
    def flush(self, model: keras.Model | None = None) -> None:
        """End the window early, with a sync as at its end, so that all ranks hold one model.

        For saving and evaluation: training goes on with a fresh window. The moving statistics of
        the model's layers (BatchNormalization), which are each worker's own while it trains,
        become their mean over the workers. ``fit`` ends with a flush. A collective: every rank
        calls it after the same step. At a window's start it averages the statistics alone.

        Args:
            model: whose statistics to average; a model compiled with this optimizer is known.

        Raises:
            RuntimeError: called inside a ``tf.function``.
        """
        if tf.inside_function():
            raise RuntimeError("flush() cannot be called inside tf.function; call it after")
        if not self.built:
            return
        self._training.flush()
        model = self._model() if model is None else model
        if model is not None:
            self._training.average_statistics(model)

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """End a training as ``fit`` does: flush, and where the inner optimizer has an average of
        the weights (EMA), put it in their place, the mean of the workers'. A collective.
        """
        self.flush()
        self.inner_optimizer.finalize_variable_values(var_list)
        if self.built and any(leaf.use_ema for leaf in leaves(self.inner_optimizer)):
            self._training.average_variables(var_list)

    def introduce(self, model: keras.Model) -> None:
        """Have `flush` average this model's statistics. ``model.compile`` calls it."""
        self._model = weakref.ref(model)

    def after_broadcast(self) -> None:
        """Agree on one start anew, as in the first step. A collective, for elastic states."""
        if self.built:
            self._training.agree_after_broadcast()

    def register_local_var(self, var: Any) -> None:
        """Not offered, unlike on Horovod's optimizer.

        Raises:
            ValueError: always.
        """
        refuse_local("what register_local_var() is given", var)

    def register_sync_hook(self, hook: Callable[[SyncRecord], None]) -> "HookHandle":
        """Have ``hook(record)`` called after each sync, for a logger.

        It is called on the ranks that registered it, so it must not communicate unless all did.
        With several steps an execution the next step may have begun by then.

        Raises:
            TypeError: ``hook`` cannot be called.

        Returns:
            A handle whose ``remove()`` takes the hook back.
        """
        if not callable(hook):
            raise TypeError(f"hook must be callable, got {hook!r}")
        return HookHandle(self._training.engine.hooks, hook)

    @property
    def sync_stats(self) -> SyncStats:
        """The syncs of this optimizer in this process: how many, bytes, seconds, the latest."""
        return self._training.engine.stats

    # ---- saving --------------------------------------------------------------------------

    def save_own_variables(self, store: Any) -> None:
        """The slow state and the counters; Keras saves the inner optimizer by itself."""
        if self.built:
            checkpoint.save(self._training, self.inner_optimizer, store)

    def load_own_variables(self, store: Any) -> None:
        """Load what `save_own_variables` stored, wholly or, on any error, not at all.

        What a bare optimizer stored begins the slow state afresh, and one info line says so. Keras
        loads the layers before and the inner optimizer after this, each by itself.

        Raises:
            ValueError: the state does not fit this optimizer; nothing of this optimizer's own
                has changed. Keras' load_model and load_weights raise it in the end.
        """
        names = list(store.keys())
        if not self.built:
            if names:
                warnings.warn(
                    "the saved optimizer is left out, since this one is not built: call "
                    "optimizer.build(model.trainable_variables) before loading to go on with it",
                    stacklevel=2,
                )
        elif all(name.isdecimal() for name in names):  # as every optimizer of Keras' own has it
            _logger.info("no slow state in this checkpoint: the slow momentum begins afresh")
            self._training.begin_afresh()
        else:
            checkpoint.load(self._training, self.inner_optimizer, store)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set all of `variables`, in their order.

        Raises:
            ValueError: the optimizer is not built, or a number or a shape does not fit.
        """
        variables = self.variables
        if not self.built or len(weights) != len(variables):
            raise ValueError(
                f"the optimizer has {len(variables)} variables, got {len(weights)} weights"
                if self.built
                else "call optimizer.build(model.trainable_variables) before set_weights()"
            )
        for variable, weight in zip(variables, weights, strict=True):
            if tuple(variable.shape) != tuple(weight.shape):
                raise ValueError(
                    f"{variable.path} has shape {tuple(variable.shape)}, got {tuple(weight.shape)}"
                )
        self._training.engine.mend()
        for variable, weight in zip(variables, weights, strict=True):
            variable.assign(weight)

    def get_config(self) -> dict[str, Any]:
        """The arguments, the inner optimizer's among them, for ``model.save``."""
        ranks = self.process_set.ranks
        return {
            "name": self.name,
            "inner_optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "device_dense": self._device_dense,
            "compression": name_of_compression(self._compression),
            "sparse_as_dense": self.sparse_as_dense,
            "backward_passes_per_step": self.backward_passes_per_step,
            "average_aggregated_gradients": self.average_aggregated_gradients,
            "weights": self._positions(),
            "process_set": None if self.process_set is hvd.global_process_set else list(ranks),
            **self._training.config.asdict(),
            **{name: _to_config(getattr(self._training.config, name)) for name in _OF_WINDOWS},
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "DistributedOptimizer":
        """The optimizer that `get_config` described.

        Raises:
            ValueError: its compression is a class of the user's, or its process set is not
                known to Horovod here.
            TypeError: a schedule of the user's own is not known to Keras here.
        """
        inner = keras.saving.deserialize_keras_object(
            config["inner_optimizer"], custom_objects=custom_objects
        )
        config = without_auto(config, type(leaves(inner)[0]).__name__)
        config = {name: value for name, value in config.items() if name != "inner_optimizer"}
        config["compression"] = compression_by_name(config["compression"])
        config["process_set"] = process_set_by_ranks(config["process_set"])
        config |= {name: _from_config(config[name], custom_objects) for name in _OF_WINDOWS}
        saved_weights = config.pop("weights", None)
        optimizer = cls(inner, **config)
        optimizer._saved_weights = saved_weights
        return optimizer


def _to_config(setting: Any) -> Any:
    """A schedule as Keras saves it: one of ours as builtins, a function by its registered name."""
    ours = schedules.to_config(setting)
    return keras.saving.serialize_keras_object(ours) if callable(ours) else ours


def _from_config(setting: Any, custom_objects: dict[str, Any] | None) -> Any:
    found = schedules.from_config(setting)
    if not isinstance(found, dict):
        return found
    return keras.saving.deserialize_keras_object(found, custom_objects=custom_objects)


def PartialDistributedOptimizer(  # noqa: N802
    optimizer: keras.optimizers.Optimizer,
    *args: Any,
    local_layers: Any = None,
    **kwargs: Any,
) -> DistributedOptimizer:
    """`DistributedOptimizer`; layers of one worker alone are refused.

    In the place of ``horovod.keras.PartialDistributedOptimizer``.

    Raises:
        ValueError: ``local_layers`` are given. SlowMo averages all variables of its optimizer.
    """
    refuse_local("local_layers", local_layers)
    return DistributedOptimizer(optimizer, *args, **kwargs)


class HookHandle:
    """Takes a hook back."""

    def __init__(self, hooks: dict[int, Any], hook: Callable[[SyncRecord], None]) -> None:
        self._hooks = hooks
        hooks[id(self)] = hook

    def remove(self) -> None:
        """Call the hook no more."""
        self._hooks.pop(id(self), None)


class CallableList(list[Any]):
    """A list that can be called, since Horovod's scripts write ``optimizer.variables()``."""

    def __call__(self) -> "CallableList":
        """The list."""
        return self
