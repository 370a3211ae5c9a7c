"""Bad input: every argument out of range, of the wrong type, and unknown; and bad surroundings."""

import inspect
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import horovod.tensorflow
import horovod.tensorflow.keras
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_models import fit, mlp, number, step_with
from keras_optimizers import of_keras
from launch import run

import slowmo_hvd.tensorflow as hvd


def wrap(**arguments: Any) -> hvd.DistributedOptimizer:
    return hvd.DistributedOptimizer(keras.optimizers.SGD(1.0), **arguments)


@pytest.mark.parametrize(
    ("argument", "value", "legal"),
    [
        ("sync_period", 0, "an int >= 1, got 0"),
        ("sync_period", -3, "an int >= 1, got -3"),
        ("slow_lr", 0, "a finite number > 0, got 0"),
        ("slow_lr", -0.5, "a finite number > 0, got -0.5"),
        ("slow_lr", float("inf"), "a finite number > 0, got inf"),
        ("slow_lr", float("nan"), "a finite number > 0, got nan"),
        ("slow_momentum", 1.0, "a number with 0 <= slow_momentum < 1, got 1.0"),
        ("slow_momentum", -0.1, "a number with 0 <= slow_momentum < 1, got -0.1"),
        ("slow_momentum", float("nan"), "a number with 0 <= slow_momentum < 1, got nan"),
        ("warmup_steps", -1, "an int >= 0, got -1"),
        ("buffers", "keep", "one of 'maintain', 'reset', 'average', got 'keep'"),
        ("backward_passes_per_step", 0, "an int >= 1, got 0"),
    ],
)
def test_out_of_range(argument: str, value: Any, legal: str) -> None:
    with pytest.raises(ValueError, match=f"^{argument} must be {legal}"):
        wrap(**{argument: value})


@pytest.mark.parametrize(
    ("argument", "value", "legal"),
    [
        ("sync_period", 2.0, "an int >= 1, got 2.0"),
        ("sync_period", "2", "an int >= 1, got '2'"),
        ("sync_period", True, "an int >= 1, got True"),
        ("sync_period", None, "an int >= 1, got None"),
        ("sync_period", tf.constant(3), "an int >= 1, got <tf.Tensor"),
        ("slow_lr", "1", "a finite number > 0, got '1'"),
        ("slow_lr", None, "a finite number > 0, got None"),
        ("slow_momentum", "0.5", "a number with 0 <= slow_momentum < 1, got '0.5'"),
        ("slow_momentum", [0.5], r"a number with 0 <= slow_momentum < 1, got \[0.5\]"),
        ("nesterov", 1, "True or False, got 1"),
        ("nesterov", "yes", "True or False, got 'yes'"),
        ("warmup_steps", 1.5, "an int >= 0, got 1.5"),
        ("buffers", None, "one of 'maintain', 'reset', 'average', got None"),
        ("buffers", 3, "one of 'maintain', 'reset', 'average', got 3"),
        ("backward_passes_per_step", 1.0, "an int >= 1, got 1.0"),
        ("backward_passes_per_step", True, "an int >= 1, got True"),
        ("average_aggregated_gradients", 1, "True or False, got 1"),
        ("sparse_as_dense", "yes", "True or False, got 'yes'"),
        ("sparse_as_dense", None, "True or False, got None"),
        ("device_dense", 3, "the name of a device, such as '/cpu:0', or '', got 3"),
        ("device_dense", None, "the name of a device, such as '/cpu:0', or '', got None"),
        ("compression", None, "hvd.Compression.none, .* got None"),
        ("compression", "fp16", "hvd.Compression.none, .* got 'fp16'"),
        ("process_set", 3, "hvd.global_process_set or .* got 3"),
        ("process_set", None, "hvd.global_process_set or .* got None"),
    ],
)
def test_of_the_wrong_type(argument: str, value: Any, legal: str) -> None:
    with pytest.raises(TypeError, match=f"^{argument} must be {legal}"):
        wrap(**{argument: value})


def test_numpys_numbers_are_numbers() -> None:
    optimizer = wrap(sync_period=np.int64(3), slow_lr=1, slow_momentum=np.float32(0.5))
    assert optimizer.get_config()["sync_period"] == 3


def test_nesterov_without_momentum() -> None:
    with pytest.raises(ValueError, match="nesterov=True needs slow_momentum > 0, got 0"):
        wrap(nesterov=True, slow_momentum=0)


def test_unknown_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'slow_momentun'"):
        wrap(slow_momentun=0.5)
    with pytest.raises(TypeError, match=r"apply_gradients\(\) got unexpected arguments: \['lr'\]"):
        wrap().apply_gradients([(tf.ones([1]), number(0.0))], lr=1.0)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("learning_rate", 0.1),
        ("weight_decay", 0.1),
        ("clipnorm", 1.0),
        ("clipvalue", 1.0),
        ("global_clipnorm", 1.0),
        ("use_ema", True),
        ("ema_momentum", 0.9),
        ("ema_overwrite_frequency", 2),
        ("loss_scale_factor", 8.0),
        ("gradient_accumulation_steps", 2),
    ],
)
def test_what_every_keras_optimizer_takes_is_to_be_given_to_the_inner(
    argument: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=f"Instead, set `{argument}` on the inner optimizer"):
        wrap(**{argument: value})


def test_no_argument_of_keras_optimizers_is_forgotten() -> None:
    of_keras = set(inspect.signature(keras.optimizers.Optimizer).parameters)
    for argument in of_keras - {"name", "kwargs", "args", "self"}:
        with pytest.raises(ValueError, match=f"set `{argument}` on the inner"):
            wrap(**{argument: None})


# ---- Horovod's own arguments ---------------------------------------------------------------


def test_horovods_come_first_and_in_its_order_and_slowmos_are_keywords_only() -> None:
    ours = inspect.signature(hvd.DistributedOptimizer).parameters
    horovods = inspect.signature(horovod.tensorflow.keras.DistributedOptimizer).parameters
    assert list(ours)[: len(horovods)] == list(horovods)
    for name, parameter in list(ours.items())[len(horovods) : -1]:  # the last is **kwargs
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, name


@pytest.mark.parametrize("module", [horovod.tensorflow, horovod.tensorflow.keras])
def test_horovods_defaults_may_be_spelled_out(module: Any) -> None:
    parameters = inspect.signature(module.DistributedOptimizer).parameters
    wrap(**{name: value.default for name, value in parameters.items() if name != "optimizer"})


@pytest.mark.parametrize(
    ("op", "text"),
    [
        (hvd.Adasum, "op=Adasum cannot be used with SlowMo: Adasum combines gradients"),
        (hvd.Sum, "op=Sum cannot be used with SlowMo: SlowMo is defined by the workers' mean"),
        (hvd.Max, "op=Max cannot be used"),
        ("mean", "op='mean' cannot be used"),
        (None, "op=None cannot be used"),
    ],
)
def test_other_reductions_are_refused(op: Any, text: str) -> None:
    with pytest.raises(ValueError, match=rf"{text}.*use op=hvd\.Average"):
        wrap(op=op)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("device_sparse", "/cpu:0"),
        ("gradient_predivide_factor", 2.0),
        ("num_groups", 3),
        ("groups", [[1, 2]]),
        ("scale_local_gradients", False),
    ],
)
def test_what_sends_gradients_in_horovod_is_refused(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{argument}=.* has no meaning for SlowMo.*leave it at"):
        wrap(**{argument: value})


def test_locks_of_tensorflow_1_are_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'use_locking'"):
        wrap(use_locking=True)


def test_a_process_set_that_horovod_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match=r"is not known to Horovod; call hvd\.add_process_set"):
        wrap(process_set=hvd.ProcessSet([0]))


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("kind", ["SGD", "MultiOptimizer", "LossScaleOptimizer"])
def test_backward_passes_per_step_by_hand(kind: str, average: bool) -> None:
    """Two gradients, 1 and 3, are one step by their sum, 4, or by their mean."""
    sgd = keras.optimizers.SGD(0.5)
    inner = {
        "SGD": lambda: sgd,
        "MultiOptimizer": lambda: of_keras("MultiOptimizer")(of_keras("OptimizerMap")(sgd)),
        "LossScaleOptimizer": lambda: keras.optimizers.LossScaleOptimizer(sgd, initial_scale=1.0),
    }[kind]()
    weight = keras.Variable([0.0])
    optimizer = hvd.DistributedOptimizer(
        inner,
        backward_passes_per_step=2,
        average_aggregated_gradients=average,
        sync_period=1,
        slow_momentum=0.0,
    )
    seen = []
    for gradient in (1.0, 3.0, 1.0, 3.0):
        step_with(optimizer, (gradient, weight))
        seen.append(weight.numpy().item())
    assert seen == ([0.0, -1.0, -1.0, -2.0] if average else [0.0, -2.0, -2.0, -4.0])
    assert optimizer.sync_stats.syncs == 2


def test_backward_passes_are_one_number_with_the_inners_accumulation() -> None:
    with pytest.raises(ValueError, match=r"per_step=3 and .*=2 are two answers"):
        hvd.DistributedOptimizer(
            keras.optimizers.SGD(1.0, gradient_accumulation_steps=2), backward_passes_per_step=3
        )


@pytest.mark.ranks(1)
def test_backward_passes_that_would_not_reach_an_optimizer_are_refused_each_time() -> None:
    sgd, weight = keras.optimizers.SGD(1.0), number(0.0)
    optimizer = hvd.DistributedOptimizer(
        of_keras("MultiOptimizer")(lambda variable: sgd), backward_passes_per_step=2
    )
    for _ in range(2):
        with pytest.raises(ValueError, match="set gradient_accumulation_steps on them"):
            step_with(optimizer, (1.0, weight))


@pytest.mark.ranks(1)
def test_optimizers_that_add_up_different_numbers_of_gradients_are_refused() -> None:
    inners = [keras.optimizers.SGD(1.0, gradient_accumulation_steps=n) for n in (None, 3)]
    both = of_keras("MultiOptimizer")(lambda variable: inners[len(variable.shape) - 1])
    with pytest.raises(ValueError, match=r"have gradient_accumulation_steps \[1, 3\]"):
        step_with(hvd.DistributedOptimizer(both), (1.0, number(0.0)), (1.0, tf.Variable([[0.0]])))


# ---- what can be inside --------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        None,
        "sgd",
        keras.optimizers.SGD,
        lambda: mlp(),
        lambda: tf.compat.v1.train.GradientDescentOptimizer(0.1),
        lambda: keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5),
    ],
)
def test_only_a_keras_3_optimizer_can_be_inside(given: Any) -> None:
    given = given() if inspect.isfunction(given) else given
    with pytest.raises(TypeError, match=r"must be a keras\.optimizers\.Optimizer of Keras 3, got"):
        hvd.DistributedOptimizer(given)


def multi(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    return of_keras("MultiOptimizer")(of_keras("OptimizerMap")(optimizer))


@pytest.mark.parametrize(
    "around", [lambda optimizer: optimizer, keras.optimizers.LossScaleOptimizer, multi]
)
@pytest.mark.parametrize("module", [hvd, horovod.tensorflow.keras])
def test_a_distributed_optimizer_inside_ours_is_refused(
    module: Any, around: Callable[..., Any]
) -> None:
    inside = around(module.DistributedOptimizer(keras.optimizers.SGD(1.0)))
    with pytest.raises(ValueError, match="is a DistributedOptimizer already; give the optimizer"):
        hvd.DistributedOptimizer(inside)


def test_ours_inside_horovods_is_refused() -> None:
    with pytest.raises((TypeError, ValueError)):
        horovod.tensorflow.keras.DistributedOptimizer(wrap())


@pytest.mark.ranks(1)
def test_the_optimizer_is_not_touched_by_a_refusal() -> None:
    inner, weight = keras.optimizers.SGD(1.0), number(0.0)
    with pytest.raises(ValueError, match="sync_period"):
        hvd.DistributedOptimizer(inner, backward_passes_per_step=2, sync_period=0)
    step_with(hvd.DistributedOptimizer(inner, sync_period=1), (1.0, weight))
    assert weight.numpy() == [-1.0]


@pytest.mark.ranks(1)
def test_a_reset_brings_back_buffers_that_begin_with_many_numbers() -> None:
    class Noisy(keras.optimizers.SGD):
        def build(self, variables: Any) -> None:
            super().build(variables)
            self.noise = self.add_optimizer_variables(variables, "noise", "random_normal")

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            super().update_step(gradient, variable, learning_rate)
            noise = self.noise[self._get_variable_index(variable)]
            seen.append(noise.numpy().tolist())
            noise.assign(gradient)

    seen: list[list[float]] = []
    optimizer = hvd.DistributedOptimizer(Noisy(1.0), buffers="reset", sync_period=2)
    weight = tf.Variable([1.0, 2.0])
    for _ in range(4):
        step_with(optimizer, (1.0, weight))
    assert seen[0] not in ([1.0, 1.0], [0.0, 0.0])
    assert seen == [seen[0], [1.0, 1.0], seen[0], [1.0, 1.0]]


@pytest.mark.ranks(1)
def test_a_reset_leaves_an_optimizer_that_was_used_before_as_a_new_one() -> None:
    inner, weight = keras.optimizers.SGD(1.0, momentum=0.5), number(0.0)
    step_with(inner, (1.0, weight))
    optimizer = hvd.DistributedOptimizer(inner, sync_period=1, slow_momentum=0.0, buffers="reset")
    seen = []
    for _ in range(3):
        step_with(optimizer, (0.0, weight))
        seen.append(weight.numpy().item())
    assert seen == [-1.5, -1.5, -1.5]


def test_a_sync_hook_must_be_callable() -> None:
    with pytest.raises(TypeError, match="hook must be callable, got 3"):
        wrap().register_sync_hook(3)  # type: ignore[arg-type]


# ---- surroundings --------------------------------------------------------------------------


def test_inside_a_tf_distribute_strategy_is_refused() -> None:
    with (
        tf.distribute.OneDeviceStrategy("/cpu:0").scope(),
        pytest.raises(ValueError, match=r"tf\.distribute strategy: Horovod takes its place"),
    ):
        wrap()


@pytest.mark.ranks(1)
def test_a_model_made_inside_a_tf_distribute_strategy_is_refused() -> None:
    with tf.distribute.MirroredStrategy(["/cpu:0"]).scope():
        model = mlp()
    model.compile(wrap(), loss="mse")
    with pytest.raises(ValueError, match=r"tf\.distribute strategy: Horovod takes its place"):
        fit(model, range(2))


def says(code: str, **env: str) -> str:
    """The last line that a program of its own prints."""
    done = run([sys.executable, "-c", textwrap.dedent(code)], env=env)
    return done.stdout.strip().splitlines()[-1]


def test_before_init_it_says_what_to_call() -> None:
    said = says("""
        import keras
        import slowmo_hvd.tensorflow as hvd
        hvd.DistributedOptimizer(keras.optimizers.SGD(0.1))
    """)
    assert said == "ValueError: Horovod has not been initialised; call hvd.init() first"


@pytest.mark.parametrize("backend", ["torch", "jax", "nonsense"])
def test_another_backend_of_keras_is_refused_in_one_sentence(backend: str) -> None:
    """Whether that backend is installed or not."""
    said = says("import slowmo_hvd.tensorflow", KERAS_BACKEND=backend)
    assert said.startswith("ImportError: slowmo_hvd.tensorflow needs Keras on TensorFlow")
    assert f"its backend is {backend!r}" in said
    assert "set KERAS_BACKEND=tensorflow" in said
    assert ("slowmo_hvd.torch" in said) == (backend == "torch")


@pytest.mark.parametrize("value", ["1", "True"])
def test_keras_2_is_refused_in_one_sentence(value: str) -> None:
    said = says("import slowmo_hvd.tensorflow", TF_USE_LEGACY_KERAS=value)
    assert said.startswith("ImportError: slowmo_hvd.tensorflow needs Keras 3, and TF_USE_LEGACY_KE")
    assert "unset it, or stay with horovod.tensorflow.keras" in said


def test_a_keras_2_that_is_installed_is_refused_in_one_sentence() -> None:
    said = says("""
        import keras
        keras.__version__ = "2.15.0"
        import slowmo_hvd.tensorflow
    """)
    assert said.startswith("ImportError: slowmo_hvd.tensorflow needs Keras 3, and keras 2.15.0 is")
