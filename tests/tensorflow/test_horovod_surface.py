"""Whatever Horovod's modules offer is offered here, and what Keras 3 broke of it works."""

import importlib
import inspect
import pkgutil
import sys
from types import ModuleType

import horovod.keras
import horovod.tensorflow
import horovod.tensorflow.keras
import keras
import pytest
import tensorflow as tf
from keras_models import number, step_with
from ranks import by_rank

import slowmo_hvd.keras
import slowmo_hvd.tensorflow
import slowmo_hvd.tensorflow.keras

PAIRS = [
    (horovod.tensorflow, slowmo_hvd.tensorflow),
    (horovod.tensorflow.keras, slowmo_hvd.tensorflow.keras),
    (horovod.keras, slowmo_hvd.keras),
]
OURS = {
    "slowmo_hvd.tensorflow": {
        "DistributedGradientTape",
        "DistributedOptimizer",
        "PartialDistributedGradientTape",
        "SyncBatchNormalization",
        "broadcast_variables",
        "elastic",
        "functions",
        "join",
        "keras",
        "sync_batch_norm",
    },
    "slowmo_hvd.tensorflow.keras": {
        "DistributedOptimizer",
        "callbacks",
        "elastic",
        "load_model",
    },
}
OURS["slowmo_hvd.keras"] = OURS["slowmo_hvd.tensorflow.keras"] | {"PartialDistributedOptimizer"}
# Horovod imports it, for its own use, when one of its functions is called.
LATE = {"gradient_aggregation_eager"}


def public(module: ModuleType) -> set[str]:
    return {name for name in dir(module) if not name.startswith("_")}


@pytest.mark.parametrize(("theirs", "ours"), PAIRS)
def test_every_name_is_there_and_only_those_we_mean_are_replaced(
    theirs: ModuleType, ours: ModuleType
) -> None:
    assert public(theirs) - public(ours) <= LATE
    shared = public(theirs) & public(ours)
    replaced = {name for name in shared if getattr(theirs, name) is not getattr(ours, name)}
    assert replaced == OURS[ours.__name__] & shared


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("tensorflow", "elastic"),
        ("tensorflow.keras", "elastic"),
        ("tensorflow.keras", "callbacks"),
        ("keras", "elastic"),
        ("keras", "callbacks"),
    ],
)
def test_the_submodules_have_every_class_of_horovods(package: str, name: str) -> None:
    theirs = importlib.import_module(f"horovod.{package}.{name}")
    ours = importlib.import_module(f"slowmo_hvd.{package}.{name}")
    classes = {n for n in public(theirs) if getattr(theirs, n).__class__ is type or n == "run"}
    of_horovod = {n for n in classes if getattr(theirs, n).__module__.startswith("horovod")}
    not_exported = {"HorovodInternalError", "ObjectState"}
    assert of_horovod - public(ours) <= not_exported
    assert getattr(sys.modules[f"slowmo_hvd.{package}"], name) is ours


def test_each_of_horovods_callbacks_is_ours_and_takes_the_same_arguments() -> None:
    theirs = importlib.import_module("horovod.tensorflow.keras.callbacks")
    names = [name for name, value in vars(theirs).items() if isinstance(value, type)]
    assert len(names) == 5
    for name in names:
        ours = getattr(slowmo_hvd.tensorflow.keras.callbacks, name)
        assert ours.__module__.startswith("slowmo_hvd.tensorflow.keras.callbacks.")
        assert inspect.signature(ours).parameters.keys() == (
            inspect.signature(getattr(theirs, name)).parameters.keys()
        )


def test_horovods_submodules_are_found_under_this_name() -> None:
    import slowmo_hvd.tensorflow.compression
    import slowmo_hvd.tensorflow.mpi_ops as mpi_ops

    assert mpi_ops is horovod.tensorflow.mpi_ops
    assert slowmo_hvd.tensorflow.compression.Compression is horovod.tensorflow.Compression


@pytest.mark.parametrize("package", ["tensorflow", "keras"])
def test_every_submodule_of_horovods_can_be_imported(package: str) -> None:
    theirs = importlib.import_module(f"horovod.{package}")
    names = [
        module.name.removeprefix("horovod.")
        for module in pkgutil.walk_packages(theirs.__path__, f"horovod.{package}.")
    ]
    assert len(names) > 1
    for name in set(names) - {"tensorflow.mpi_lib"}:  # a library, and no module
        ours = importlib.import_module(f"slowmo_hvd.{name}")
        if not ours.__name__.startswith("slowmo_hvd."):
            assert ours is sys.modules[f"horovod.{name}"]
            assert ours.__spec__.name == f"horovod.{name}"


def test_what_is_to_remain_local_is_refused_in_one_sentence() -> None:
    hvd = slowmo_hvd.keras
    text = "cannot be kept out of SlowMo's average here: give local variables an optimizer of their"
    optimizer = hvd.PartialDistributedOptimizer(keras.optimizers.SGD(1.0), local_layers=None)
    assert type(optimizer) is hvd.DistributedOptimizer
    with pytest.raises(ValueError, match=f"local_layers {text}"):
        hvd.PartialDistributedOptimizer(keras.optimizers.SGD(1.0), local_layers=[object()])
    with pytest.raises(ValueError, match=rf"what register_local_var\(\) is given {text}"):
        optimizer.register_local_var(number(1.0))
    tape = slowmo_hvd.tensorflow.PartialDistributedGradientTape(tf.GradientTape())
    with pytest.raises(ValueError, match=rf"what register_local_source\(\) is given {text}"):
        tape.register_local_source(number(1.0))


@pytest.mark.ranks(2)
def test_one_name_for_one_optimizer_and_horovods_collectives() -> None:
    hvd, hvd_keras = slowmo_hvd.tensorflow, slowmo_hvd.tensorflow.keras
    assert hvd.DistributedOptimizer is hvd_keras.DistributedOptimizer
    assert float(hvd.allreduce(tf.constant(by_rank(1.0, 3.0)), name="mean")) == 2
    assert hvd_keras.allreduce(by_rank(1.0, 3.0), name="keras_mean").numpy() == 2
    assert hvd.allgather_object(hvd.rank()) == [0, 1]


@pytest.mark.ranks(1)
def test_the_optimizer_is_known_by_its_arguments_in_horovods_order() -> None:
    hvd = slowmo_hvd.tensorflow.keras
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(1.0), "mine", "", "", hvd.Compression.none, False, 1.0, hvd.Average
    )
    assert optimizer.name == "mine"
    weight = number(1.0)
    step_with(optimizer, (1.0, weight))
    assert weight.numpy() == [0.0]
