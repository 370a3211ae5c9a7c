"""The session that the other tests of this folder run in."""

import sys

import horovod.tensorflow as hvd
import pytest
import tensorflow as tf
from framework import horovod
from ranks import everyone


@pytest.mark.ranks(1, 2)
def test_it_is_tensorflows_and_torch_is_not_in_it() -> None:
    assert hvd.is_initialized()
    assert horovod() is hvd
    assert everyone(hvd.rank()) == list(range(hvd.size()))
    assert "torch" not in sys.modules


@pytest.mark.ranks(1, 2, 3, 4)
def test_a_collective_inside_a_function_sums_over_the_ranks() -> None:
    @tf.function
    def total(x: tf.Tensor) -> tf.Tensor:
        return hvd.allreduce(x, op=hvd.Sum, name="total")

    assert total(tf.constant([hvd.rank() + 1.0])).numpy() == [sum(range(hvd.size() + 1))]
