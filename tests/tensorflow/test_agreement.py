"""Before the first step the ranks compare notes: one error on all of them, or one start."""

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_models import (
    Array,
    batch,
    equal_on_all_ranks,
    fit,
    mlp,
    number,
    same,
    step_with,
    train,
    weights,
)
from keras_optimizers import of_keras
from ranks import by_rank, everyone, same_error_everywhere

import slowmo_hvd.tensorflow as hvd


def first_step(
    *shapes: tuple[int, ...],
    inner: keras.optimizers.Optimizer | None = None,
    dtypes: tuple[str, ...] = (),
    **options: Any,
) -> Callable[[], None]:
    """The first step of a wrapped optimizer on variables of these shapes."""
    shapes = shapes or ((1,),)
    dtypes = dtypes or ("float32",) * len(shapes)
    variables = [
        tf.Variable(tf.zeros(shape, dtype)) for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    optimizer = hvd.DistributedOptimizer(inner or keras.optimizers.SGD(1.0), **options)
    pairs = [(tf.ones_like(variable), variable) for variable in variables]
    return lambda: optimizer.apply_gradients(pairs)


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(
    ("argument", "values", "text"),
    [
        ("sync_period", (2, 3, 2), "sync_period: 2 on rank 0, 3 on rank 1"),
        ("slow_lr", (1.0, 0.5, 1.0), "slow_lr: 1.0 on rank 0, 0.5 on rank 1"),
        ("slow_momentum", (0.5, 0.25, 0.5), "slow_momentum: 0.5 on rank 0, 0.25 on rank 1"),
        ("slow_momentum", (0.5, 0.0, 0.5), "slow_momentum: 0.5 on rank 0, 0.0 on rank 1"),
        ("nesterov", (False, True, False), "nesterov: 0 on rank 0, 1 on rank 1"),
        ("warmup_steps", (0, 5, 0), "warmup_steps: 0 on rank 0, 5 on rank 1"),
        ("buffers", ("reset", "average", "reset"), "buffers: 'reset' on rank 0, 'average' on"),
        ("backward_passes_per_step", (1, 2, 1), "gradients per step: 1 on rank 0, 2 on rank 1"),
    ],
)
def test_a_rank_with_other_arguments_stops_all_with_both_values(
    argument: str, values: tuple[Any, ...], text: str, graph: bool
) -> None:
    step = first_step(**{argument: by_rank(*values)})
    same_error_everywhere(
        ValueError, f"the ranks differ in {text}", tf.function(step) if graph else step
    )


@pytest.mark.ranks(2)
def test_a_rank_with_another_accumulation_in_its_optimizer_stops_all() -> None:
    inner = keras.optimizers.SGD(1.0, gradient_accumulation_steps=by_rank(3, 2))
    same_error_everywhere(
        ValueError, "gradients per step: 3 on rank 0, 2 on rank 1", first_step(inner=inner)
    )


@pytest.mark.ranks(2)
def test_a_rank_with_another_compression_stops_all() -> None:
    compression = by_rank(hvd.Compression.none, hvd.Compression.fp16)
    same_error_everywhere(
        ValueError,
        "compression: '.*NoneCompressor' on rank 0, '.*FP16Compressor' on rank 1",
        first_step(compression=compression),
    )


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ([[(2,)], [(2,), (2,)], [(2,)]], "number of parameters: 1 on rank 0, 2 on rank 1"),
        ([[(2,)], [(3,)], [(2,)]], "number of elements: 2 on rank 0, 3 on rank 1"),
        (
            [[(2, 3)], [(3, 2)], [(2, 3)]],
            r"shapes of the parameters: number 0 is \[2, 3\] on rank 0, \[3, 2\] on rank 1;",
        ),
        (
            [[(2,), (3,)], [(3,), (2,)], [(2,), (3,)]],
            r"shapes of the parameters: number 0 is \[2\] on rank 0, \[3\] on rank 1;",
        ),
    ],
)
def test_a_rank_with_another_model_stops_all(
    shapes: list[list[tuple[int, ...]]], text: str
) -> None:
    step = first_step(*by_rank(*shapes))
    same_error_everywhere(ValueError, f"the ranks differ in .*{text}", step)


@pytest.mark.ranks(2)
def test_a_rank_with_another_dtype_stops_all() -> None:
    step = first_step((1,), dtypes=by_rank(("float32",), ("float64",)))
    text = "dtypes of the parameters: number 0 is 'float32' on rank 0, 'float64' on rank 1"
    same_error_everywhere(ValueError, text, step)


@pytest.mark.ranks(2)
def test_a_rank_with_its_variables_in_another_order_of_dtypes_stops_all() -> None:
    orders = (("float32", "float64"), ("float64", "float32"))
    step = first_step((2,), (2,), dtypes=by_rank(*orders))
    same_error_everywhere(ValueError, "the ranks differ in .*dtype", step)


@pytest.mark.ranks(2)
def test_a_rank_that_deals_its_variables_to_other_optimizers_stops_all() -> None:
    """Each of them has its own γ, so other groups mean other slow momenta, in silence."""
    inners = [keras.optimizers.SGD(1.0), keras.optimizers.SGD(0.5)]
    seen: list[Any] = []

    def choose(variable: Any) -> keras.optimizers.Optimizer:
        seen.append(variable)
        return inners[len(seen) > by_rank(1, 2)]

    step = first_step((1,), (1,), (1,), inner=of_keras("MultiOptimizer")(choose))
    same_error_everywhere(ValueError, "the ranks differ in .*group", step)


@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    "inners",
    [
        (lambda: keras.optimizers.SGD(1.0), lambda: keras.optimizers.Adam(1.0)),
        (lambda: keras.optimizers.SGD(1.0), lambda: keras.optimizers.SGD(1.0, momentum=0.5)),
        (lambda: keras.optimizers.Adam(1.0), lambda: keras.optimizers.Adam(1.0, amsgrad=True)),
    ],
)
def test_a_rank_with_other_buffers_to_average_stops_all(inners: Any) -> None:
    """They would wait for each other for ever."""
    step = first_step((2, 3), (3,), inner=by_rank(*inners)(), buffers="average")
    same_error_everywhere(ValueError, "the ranks differ in .*buffers", step)


@pytest.mark.ranks(2)
def test_after_the_error_nothing_has_moved_and_horovod_still_works() -> None:
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0), sync_period=2 + hvd.rank())
    for _ in range(2):  # it does not go away
        same_error_everywhere(
            ValueError, "sync_period", lambda: step_with(optimizer, (1.0, weight))
        )
    assert weight.numpy() == [0.0]
    assert int(optimizer.iterations) == 0
    assert hvd.allreduce(tf.ones([1]), op=hvd.Sum, name="still here").numpy() == [2]


@pytest.mark.ranks(2)
def test_the_error_ends_fit_on_every_rank() -> None:
    model = mlp()
    model.compile(
        hvd.DistributedOptimizer(keras.optimizers.SGD(1.0), sync_period=2 + hvd.rank()), loss="mse"
    )
    same_error_everywhere(ValueError, "sync_period: 2 on rank 0", lambda: fit(model, range(3)))


# ---- one start -----------------------------------------------------------------------------


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("graph", [False, True])
def test_unequal_starts_become_the_roots_with_one_warning_that_says_how_far(graph: bool) -> None:
    weight = tf.Variable([1.0, 1.0 + 0.5 * hvd.rank()])
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0), sync_period=2)

    def step() -> None:
        step_with(optimizer, (0.0, weight))

    run = tf.function(step) if graph else step
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        for _ in range(3):
            run()
    expected = [
        f"rank {hvd.rank()} started from other weights than rank 0 "
        f"(up to {0.5 * hvd.rank():.3g} apart) and takes rank 0's; "
        "broadcast the weights before the first step"
    ]
    assert [str(warning.message) for warning in caught] == (expected if hvd.rank() else [])
    assert weight.numpy().tolist() == [1, 1]


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("inner", ["SGD", "ScheduleFreeAdamW"])
def test_the_first_window_begins_at_the_roots_weights_on_every_rank(
    inner: str,
) -> None:
    weight = number(1.0 + 10 * hvd.rank())
    optimizer = hvd.DistributedOptimizer(of_keras(inner)(0.5), sync_period=3, slow_momentum=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step_with(optimizer, (0.0, weight))
    assert everyone(weight.numpy().tolist()) == [[1.0]] * hvd.size()
    step_with(optimizer, (1.0, weight))
    assert set(everyone(weight.numpy().item())) == {weight.numpy().item()}
    assert optimizer.sync_stats.syncs == 0


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("when", ["before building", "after building"])
def test_broadcasting_the_weights_before_or_after_building_starts_all_alike(when: str) -> None:
    root = hvd.size() - 1
    model = mlp(seed=hvd.rank())
    optimizer = hvd.DistributedOptimizer(keras.optimizers.Adam(0.0), sync_period=2)
    if when == "after building":
        optimizer.build(model.trainable_variables)
    hvd.broadcast_variables(model.variables, root_rank=root)
    train(model, optimizer, [0])  # no warning, which would be an error here
    assert equal_on_all_ranks(model)
    assert same(weights(model), weights(mlp(seed=root)))


@pytest.mark.ranks(2)
def test_models_made_alike_need_no_broadcast_and_move_by_no_bit() -> None:
    """The root's weights travel as a sum with the other ranks' zeros."""
    start = np.array([2.0**-126, 0.1, -3e38, 1 / 3], np.float32)
    weight = tf.Variable(start)
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.0), sync_period=9)
    step_with(optimizer, (0.0, weight))
    assert np.array_equal(weight.numpy(), start)


# ---- what is sent --------------------------------------------------------------------------


@pytest.fixture
def collectives(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the allreduces and allgathers put into graphs from now on."""
    import horovod.tensorflow as horovod

    names: list[str] = []
    for kind in ("allreduce", "allgather", "broadcast"):
        original = getattr(horovod, kind)

        def spy(*args: Any, original: Any = original, kind: str = kind, **kwargs: Any) -> Any:
            names.append(kwargs.get("name") or kind)
            return original(*args, **kwargs)

        monkeypatch.setattr(horovod, kind, spy)
    return names


@pytest.mark.ranks(2)
def test_nothing_is_sent_before_the_first_step(collectives: list[str]) -> None:
    model = mlp()
    inner = keras.optimizers.Adam(0.1)
    optimizer = hvd.DistributedOptimizer(inner, sync_period=2, buffers="average")
    optimizer.build(model.trainable_variables)
    optimizer.flush()
    model.compile(optimizer, loss="mse")
    model.evaluate(*batch(0), verbose=0)
    model.predict(batch(0)[0], verbose=0)
    optimizer.flush()
    assert collectives == []
    train(model, optimizer, [0], graph=False)
    assert len(collectives) == 2  # the figures, and the anchor


@pytest.mark.ranks(2)
def test_between_syncs_no_rank_waits_for_another() -> None:
    """Rank 0 takes a whole window's local steps before rank 1 takes its first."""
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0), sync_period=4)
    step_with(optimizer, (1.0, weight))  # together: they agree
    before: list[Array] = []
    for turn in range(2):
        if hvd.rank() == turn:
            step_with(optimizer, (1.0, weight))
            step_with(optimizer, (1.0, weight))
            before = weights([weight])
        everyone(None)  # the other rank stands here meanwhile
    assert before[0].tolist() == [-3.0]
    step_with(optimizer, (1.0 + hvd.rank(), weight))
    assert optimizer.sync_stats.syncs == 1
    assert weight.numpy() == [-4.5]


@pytest.mark.ranks(2)
def test_the_ranks_compare_notes_once() -> None:
    """A later change of heart on one rank cannot be seen, but must not hang either."""
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0), sync_period=2)
    step_with(optimizer, (1.0, weight))
    optimizer.learning_rate = by_rank(1.0, 0.5)
    step_with(optimizer, (1.0, weight))
    assert everyone(optimizer.sync_stats.syncs) == [1, 1]


@pytest.mark.ranks(2)
def test_optimizers_made_by_one_rank_alone_do_not_confuse_the_others() -> None:
    if hvd.rank() == 1:
        for _ in range(3):
            hvd.DistributedOptimizer(keras.optimizers.SGD(1.0))
    weight = number(0.0)
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0), sync_period=1)
    step_with(optimizer, (1.0 + hvd.rank(), weight))
    assert weight.numpy() == [-1.5]
