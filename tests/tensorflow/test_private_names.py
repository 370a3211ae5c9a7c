"""Each private name of Keras' and Horovod's that the adapter uses is still there."""

import sys
from typing import Any

import horovod.common.process_sets
import horovod.tensorflow.elastic
import keras
import pytest
from private_names import used


def _built(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    optimizer.build([keras.Variable([0.0])])
    return optimizer


SGD = _built(keras.optimizers.SGD(0.1, momentum=0.9))
AVERAGING = _built(keras.optimizers.SGD(0.1, use_ema=True, gradient_accumulation_steps=2))
FTRL = _built(keras.optimizers.Ftrl())
# In a Keras without it nothing of ours reads the name, and Adam, which has it too, stands in.
SCHEDULE_FREE = _built(getattr(keras.optimizers, "ScheduleFreeAdamW", keras.optimizers.Adam)())
MODEL = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization()])
MODEL.compile()

#: Who has each name, and what of ours would break without it.
NAMES: dict[str, tuple[Any, str]] = {
    "_trainable_variables": (SGD, "which variables an optimizer updates"),
    "_iterations": (SGD, "its count of steps"),
    "_backend_update_step": (SGD, "the count of steps that an update sees after a reset"),
    "_model_variables_moving_average": (AVERAGING, "averages of the weights (EMA)"),
    "_accumulated_gradients": (AVERAGING, "gradients that are adding up"),
    "_seed_generators": (MODEL.layers[0], "the random generators that are broadcast"),
    "_flatten_layers": (MODEL, "which layers have moving statistics"),
    "_initial_epoch": (MODEL, "where a restored fit goes on"),
    "_non_trainable_variables": (MODEL.layers[0], "moving statistics"),
    "_linears": (FTRL, "FTRL's second copy of the weights"),
    "_accumulators": (FTRL, "FTRL's second copy of the weights"),
    "_momentums": (SCHEDULE_FREE, "ScheduleFreeAdamW's second copy of the weights"),
    "_reduction_axes": (MODEL.layers[0], "SyncBatchNormalization"),
    "_basics": (horovod.common.process_sets, "process sets of a saved optimizer"),
    "_get_process_set_ids_and_ranks": (horovod.common.process_sets._basics, "likewise"),
    "_reset": (horovod.tensorflow.elastic, "elastic training"),
    "_getframe": (sys, "who calls a step"),
}
#: Python's own, of a named tuple.
OTHERS = {"_replace"}


@pytest.mark.parametrize("name", NAMES)
def test_a_private_name_is_there(name: str) -> None:
    owner, what = NAMES[name]
    places = ", ".join(used("tensorflow").get(name, []))
    assert hasattr(owner, name), (
        f"Keras {keras.__version__} has no {name} any more, by which goes {what}: see {places}"
    )


def test_each_private_name_in_the_source_is_in_this_list() -> None:
    assert set(used("tensorflow")) == set(NAMES) | OTHERS
