"""One wild window does not throw the model away where the displacement is clipped, in Keras."""

import keras
import pytest
import tensorflow as tf
from ranks import by_rank

import slowmo_hvd.tensorflow as hvd

WILD = 12  # the step in which rank 1 has a gradient of 1e6


def furthest(clip: float | None, *, in_graph: bool) -> tuple[float, list[float]]:
    """How far a weight gets from its optimum, 0, at windows' ends; and ``clipped`` of each."""
    weight = keras.Variable([1.0])
    settings = {"sync_period": 4, "clip_displacement": clip}
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1), slow_momentum=0.5, **settings)
    optimizer.build([weight])
    clipped: list[float] = []
    optimizer.register_sync_hook(lambda record: clipped.append(record.clipped))

    def step(wild: tf.Tensor) -> None:
        gradient = tf.where(wild, tf.constant([by_rank(0.0, 1e6)]), weight.value)
        optimizer.apply([gradient], [weight])

    take = tf.function(step, autograph=False) if in_graph else step
    seen = []
    for number in range(40):
        take(tf.constant(number == WILD))
        if number % 4 == 3:
            seen.append(abs(float(weight.numpy()[0])))
    return max(seen), clipped


@pytest.mark.ranks(2)
@pytest.mark.parametrize("in_graph", [False, True])
def test_a_wild_gradient_on_one_rank_is_clipped(in_graph: bool) -> None:
    apart, clipped = furthest(None, in_graph=in_graph)
    assert apart > 1e4
    assert set(clipped) == {1.0}
    # 8 is four gradients of 2. A clipped window makes u at most 8 larger, which moves the weight by
    # at most γ 8 / (1 - β) = 1.6 in all.
    apart, clipped = furthest(8.0, in_graph=in_graph)
    assert apart < 2
    assert min(clipped) < 1e-3
    assert clipped.count(1.0) == len(clipped) - 1
