"""A worker that trains on something else is left out of the averages, in Keras."""

from typing import Any

import keras
import pytest
import tensorflow as tf
from ranks import by_rank

import slowmo_hvd.tensorflow as hvd


def ends_at(factor: float | None, overlap: int, *, in_graph: bool) -> tuple[float, Any]:
    """How far from its optimum, 0, a weight is in the end, and the last sync's record."""
    weight = keras.Variable([1.0])
    settings = {"sync_period": 4, "outlier_factor": factor, "overlap_steps": overlap}
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1), slow_momentum=0.0, **settings)
    optimizer.build([weight])

    def step() -> None:
        # Rank 2 takes its labels a thousand times too large.
        optimizer.apply([weight.value - by_rank(0.0, 0.0, 1000.0)], [weight])

    take = tf.function(step, autograph=False) if in_graph else step
    for _ in range(40):
        take()
    optimizer.flush()
    return abs(float(weight.numpy()[0])), optimizer.sync_stats.last


@pytest.mark.ranks(3)
@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("in_graph", [False, True])
def test_a_worker_with_wrong_data_is_left_out_where_it_would_ruin_the_run(
    overlap: int, in_graph: bool
) -> None:
    apart, record = ends_at(None, overlap, in_graph=in_graph)
    assert apart > 100
    assert (record.workers, record.outliers) == (3, ())
    with pytest.warns(UserWarning, match="rank 2 moved by more than outlier_factor"):
        apart, record = ends_at(4.0, overlap, in_graph=in_graph)
    assert apart < 0.1
    assert (record.workers, record.outliers) == (2, (2,))
