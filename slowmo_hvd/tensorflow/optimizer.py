"""DistributedOptimizer: τ local steps of any Keras optimizer, one allreduce, one slow step."""

import contextlib
import logging
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import horovod.tensorflow as hvd
import keras
import tensorflow as tf

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
from slowmo_hvd.tensorflow import checkpoint
from slowmo_hvd.tensorflow.arguments import (
    check_device,
    check_inner,
    check_samples,
    check_trained,
    refuse_arguments_of_the_inner,
    refuse_local,
)
from slowmo_hvd.tensorflow.context import (
    as_written,
    check_context,
    initialised,
    refuse_strategy,
)
from slowmo_hvd.tensorflow.leaves import accumulation_steps, groups_of, leaves
from slowmo_hvd.tensorflow.saved_config import from_saved, to_saved
from slowmo_hvd.tensorflow.settings import OF_EVERY_OPTIMIZER, change, holder, is_setting
from slowmo_hvd.tensorflow.training import Training

_logger = logging.getLogger("slowmo_hvd")


@keras.saving.register_keras_serializable(package="slowmo_hvd")
class DistributedOptimizer(keras.optimizers.Optimizer):  # type: ignore[misc]
    """SlowMo around any Keras 3 optimizer. It replaces Horovod's DistributedOptimizer.

    Each worker takes ``sync_period`` (τ) steps of ``optimizer`` on its own gradients. Then the
    workers average their displacements d̄ with one allreduce and take a slow momentum step (arXiv
    1910.00643, Algorithm 1; γ is the learning rate):

        u ← β u + d̄ / γ
        x ← x_0 - α γ u

    Compile a model with it, or call `apply_gradients` in a loop of your own, eagerly or in
    ``tf.function``. Set what belongs to the local steps on the inner optimizer: clipping, weight
    decay, averages of the weights (EMA), gradient accumulation and the learning-rate schedule.

    Variables that ``layer.trainable = False`` freezes are neither moved nor sent from the next step
    on. Their slow momentum is dropped, but its memory stays. In ``fit`` this needs a new
    ``compile``, and in a ``tf.function`` of your own a new function. Variables that are thawed
    start from the lowest rank's values. All ranks must freeze and thaw the same variables before
    the same step.

    Args:
        optimizer: the inner optimizer, any ``keras.optimizers.Optimizer``. Under the global policy
            mixed_float16, ``model.compile`` puts a LossScaleOptimizer around it. If an optimizer of
            your own keeps copies of the weights and steps in them, give it an attribute with the
            names of its lists of variables, such as ``second_copies = ("zs",)``. The copies are
            then set to the weights when a window begins.
        name: the optimizer's name.
        device_dense: the device on which the displacements are summed; with "" Horovod chooses.
        device_sparse: must be ""; SlowMo sends no gradients.
        compression: ``hvd.Compression.none`` or ``.fp16``, the compression of the displacements on
            the wire. They are scaled to fit. Averaged buffers are not compressed.
        sparse_as_dense: whether to give the inner optimizer dense gradients instead of sparse ones.
        gradient_predivide_factor: must be 1.0; SlowMo sends no gradients.
        op: ``hvd.Average``, the only reduction that SlowMo supports.
        backward_passes_per_step: the number of gradients that add up before each step of the inner
            optimizer, with its ``gradient_accumulation_steps``. ``sync_period`` counts these steps.
        average_aggregated_gradients: whether to divide the sum of the gradients by
            ``backward_passes_per_step``.
        num_groups: must be 0; SlowMo sends no gradients.
        groups: must be None; SlowMo sends no gradients.
        process_set: the ranks that train together. On other ranks all steps stay local.
        scale_local_gradients: must be True; SlowMo sends no gradients.
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
            "reset" or "average". The paper resets SGD's momentum.
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
        bucket_bytes: the number of bytes that a sync sends at once, >= 8. A few buckets are in
            memory, in addition to the slow state. With more buckets, more of the arithmetic is
            hidden behind the communication.
        overlap_steps: d, the number of local steps taken while an average is under way, 0 <= d < τ.
            No step is lost. With 0, training waits for the average, as in the paper. It needs
            memory for a copy of the weights.
        fragments: F, the number of parts in which the variables travel, 1 <= F <= τ. Each part
            travels once in τ steps, one part after the other, so F times less travels at once.
            Together with `overlap_steps` this is Streaming DiLoCo (arXiv 2501.18512), except that
            no step is lost.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range or has no meaning for SlowMo, or the optimizer is
            distributed already.
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
        slow_momentum: OfWindow = 0.2,
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
        self.inner_optimizer = optimizer  # from here on its settings can be set: __setattr__
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
        """The inner optimizer's learning rate."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.inner_optimizer.learning_rate = value

    @property
    def iterations(self) -> Any:
        """The inner optimizer's count of steps, without those that overflowed on this rank."""
        return self.inner_optimizer.iterations

    @property
    def variables(self) -> "CallableList":
        """The slow state, the counters, and all variables of the inner optimizer."""
        self._training.engine.wait()  # after this, nothing writes into what is read
        return CallableList(self._variables + list(self.inner_optimizer.variables))

    @as_written
    def scale_loss(self, loss: Any) -> Any:
        """Call the inner optimizer's ``scale_loss``."""
        return self.inner_optimizer.scale_loss(loss)

    def exclude_from_weight_decay(self, *args: Any, **kwargs: Any) -> None:
        """Call the inner optimizer's ``exclude_from_weight_decay``."""
        self.inner_optimizer.exclude_from_weight_decay(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Settings of the inner optimizer that scripts and callbacks use, such as momentum and
        # beta_1.
        if name.startswith("_") or "inner_optimizer" not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(holder(self.inner_optimizer, name), name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute of the inner optimizer there, with the same effect as in bare Keras.

        Raises:
            AttributeError: the attribute cannot change any more, or it is a setting of several
                optimizers in a MultiOptimizer.
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
        """Raise if the number of gradients for each step would change after it is relied on."""
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

    @as_written
    def build(self, variables: Sequence[Any]) -> None:
        """Make the inner optimizer's variables and the slow state."""
        if self.built or not variables:  # Keras has none yet where it loads a HDF5 file
            return
        variables = self._with_frozen(list(variables))
        # Outside the graph in which a step may be traced, because variables made there have no
        # values yet. But if the model's variables have none either, in the same graph as they are,
        # because an optimizer may look at them.
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
            # Not super().build(), which would make a second average of the weights (EMA) and
            # similar variables. Not setattr, which would take the model's variables for the
            # optimizer's.
            self.__dict__["_trainable_variables"] = variables
            self.built = True

    def _with_frozen(self, variables: list[Any]) -> list[Any]:
        """The variables; for a loaded model also those that were frozen after training began.

        Keras builds a loaded optimizer with the variables that are trainable now, but it was saved
        with more.
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
        """The variables' positions among the model's weights, if some of them are frozen."""
        model = self._model()
        if model is None or all(variable.trainable for variable in self._trainable_variables):
            return self._saved_weights
        places = {id(weight): position for position, weight in enumerate(model.weights)}
        found = [places.get(id(variable)) for variable in self._trainable_variables]
        return [position for position in found if position is not None]

    @as_written
    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, Any]], **kwargs: Any) -> Any:
        """Take one local step, and synchronise if that is due.

        Args:
            grads_and_vars: pairs of this worker's own gradient and a variable.
            kwargs: ``name`` and ``experimental_aggregate_gradients`` of Keras 2, which have no
                effect.

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

    @as_written
    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Take one local step, and synchronise if that is due.

        The first step takes the weights as the start of all ranks. In a ``tf.function`` this
        happens where the function is traced. So load or broadcast weights before that, or they
        count as progress.

        A step whose gradients overflowed on this rank is skipped by the LossScaleOptimizer inside,
        and still counts.

        Args:
            grads: this worker's own gradients.
            trainable_variables: a variable for each gradient; can be left out once the optimizer is
                built.

        Raises:
            ValueError: as in `apply_gradients`.
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
            # Keras takes the mean of the gradients that have added up, Horovod by default the sum.
            factor = self.backward_passes_per_step
            grads = [
                g if g is None else tf.math.scalar_mul(tf.cast(factor, g.dtype), g) for g in grads
            ]
        return grads

    @as_written
    def contribute(self, samples: Any) -> None:
        """Count the samples of this worker's next step, to weight the averages by them.

        Call this before each step, on every rank or on none. The average that ends a window is then
        Σ n_i d^i / Σ n_i, where n_i is what worker i has counted in the window. Use it for batches,
        or windows, that are not equally large on all ranks. With ``fit``, call it in the model's
        own ``train_step``. γ, averaged buffers and moving statistics remain plain means.

        Args:
            samples: the number of examples, of tokens, or of whatever the loss is a mean of; an
                int >= 0, or a tensor of one, such as ``tf.shape(x)[0]``. Several calls before one
                step add up.

        Raises:
            TypeError, ValueError: ``samples`` is not an int >= 0. The value of a tensor in a graph
                is not checked.
            ValueError: the optimizer is not built yet.
            RuntimeError: in the sync, on every rank, if some ranks have counted samples and others
                have not.
        """
        if not self.built:
            raise ValueError(
                "the optimizer does not know its variables yet: call "
                "optimizer.build(model.trainable_variables) before contribute()"
            )
        self._training.counters.contribute(check_samples(samples))

    @as_written
    def flush(self, model: keras.Model | None = None) -> None:
        """End the window early with a sync, so that all ranks have the same model.

        Use it before saving and evaluation. Training goes on with a new window. While a model
        trains, the moving statistics of its layers (BatchNormalization's) are each worker's own;
        this sets them to their mean over the workers where they are finite. At the start of a
        window it averages only the statistics. ``fit`` ends with a flush. This is a collective:
        every rank calls it after the same step.

        Args:
            model: the model whose statistics to average. By default it is the model that was
                compiled with this optimizer.

        Raises:
            RuntimeError: it is called inside a ``tf.function``.
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
        """End a training as ``fit`` does: flush, and take the averages of the weights (EMA).

        If the inner optimizer keeps averages of the weights, the weights become the workers' mean
        of these averages. A collective.
        """
        self.flush()
        self.inner_optimizer.finalize_variable_values(var_list)
        if self.built and any(leaf.use_ema for leaf in leaves(self.inner_optimizer)):
            self._training.average_variables(var_list)

    def introduce(self, model: keras.Model) -> None:
        """Make `flush` average this model's statistics. ``model.compile`` calls this."""
        self._model = weakref.ref(model)

    def after_broadcast(self) -> None:
        """Agree on one start again, as in the first step. A collective, for elastic states."""
        if self.built:
            self._training.agree_after_broadcast()

    def register_local_var(self, var: Any) -> None:
        """Not supported, unlike in Horovod's optimizer.

        Raises:
            ValueError: a variable is given.
        """
        refuse_local("what register_local_var() is given", var)

    def register_sync_hook(self, hook: Callable[[SyncRecord], None]) -> "HookHandle":
        """Call ``hook(record)`` after each sync, for example to log it.

        The hook is called on the ranks that registered it. So it must not communicate unless all
        ranks did. If ``steps_per_execution`` is more than 1, the next step may have begun by then.

        Raises:
            TypeError: ``hook`` is not callable.

        Returns:
            A handle whose ``remove()`` removes the hook.
        """
        if not callable(hook):
            raise TypeError(f"hook must be callable, got {hook!r}")
        return HookHandle(self._training.engine.hooks, hook)

    @property
    def sync_stats(self) -> SyncStats:
        """Totals over this optimizer's syncs in this process, and the record of the latest one."""
        return self._training.engine.stats

    # ---- saving --------------------------------------------------------------------------

    def save_own_variables(self, store: Any) -> None:
        """Save the slow state and the counters. Keras saves the inner optimizer by itself."""
        if self.built:
            checkpoint.save(self._training, self.inner_optimizer, store)

    def load_own_variables(self, store: Any) -> None:
        """Load what `save_own_variables` stored. If there is any error, nothing changes.

        With what a bare optimizer stored, the slow state starts from scratch, and one info line in
        the log says so. Keras loads the layers before this and the inner optimizer after it, each
        by itself.

        Raises:
            ValueError: the state does not fit this optimizer. Nothing of this optimizer's own has
                changed. Keras' load_model and load_weights raise the error at their end.
        """
        names = list(store.keys())
        if not self.built:
            if names:
                warnings.warn(
                    "the saved optimizer is left out, since this one is not built: call "
                    "optimizer.build(model.trainable_variables) before loading to go on with it",
                    stacklevel=2,
                )
        elif all(name.isdecimal() for name in names):  # as in every optimizer of Keras
            _logger.info("no slow state in this checkpoint: the slow momentum begins afresh")
            self._training.begin_afresh()
        else:
            checkpoint.load(self._training, self.inner_optimizer, store)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set all of `variables`, in their order.

        Raises:
            ValueError: the optimizer is not built, or the number of weights or a shape does not
                fit.
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
        """Return the arguments, with the inner optimizer among them, for ``model.save``."""
        return {
            "name": self.name,
            "device_dense": self._device_dense,
            "sparse_as_dense": self.sparse_as_dense,
            "backward_passes_per_step": self.backward_passes_per_step,
            "average_aggregated_gradients": self.average_aggregated_gradients,
            "weights": self._positions(),
            **to_saved(
                self.inner_optimizer, self._compression, self.process_set, self._training.config
            ),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "DistributedOptimizer":
        """Make the optimizer that `get_config` described.

        Raises:
            ValueError: its compression is a class of the user's own, or its process set is not
                known to Horovod here.
            TypeError: a schedule of the user's own is not known to Keras here.
        """
        inner, arguments = from_saved(config, custom_objects)
        saved_weights = arguments.pop("weights", None)
        optimizer = cls(inner, **arguments)
        optimizer._saved_weights = saved_weights
        return optimizer


def PartialDistributedOptimizer(  # noqa: N802
    optimizer: keras.optimizers.Optimizer,
    *args: Any,
    local_layers: Any = None,
    **kwargs: Any,
) -> DistributedOptimizer:
    """`DistributedOptimizer`, which refuses layers that belong to one worker alone.

    It replaces ``horovod.keras.PartialDistributedOptimizer``.

    Raises:
        ValueError: ``local_layers`` are given. SlowMo averages all variables of its optimizer.
    """
    refuse_local("local_layers", local_layers)
    return DistributedOptimizer(optimizer, *args, **kwargs)


class HookHandle:
    """Removes a hook."""

    def __init__(self, hooks: dict[int, Any], hook: Callable[[SyncRecord], None]) -> None:
        self._hooks = hooks
        hooks[id(self)] = hook

    def remove(self) -> None:
        """Do not call the hook any more."""
        self._hooks.pop(id(self), None)


class CallableList(list[Any]):
    """A list that can be called, because Horovod's scripts write ``optimizer.variables()``."""

    def __call__(self) -> "CallableList":
        """Return the list."""
        return self
