"""Batch normalization over the batches of all workers."""

from typing import Any

import horovod.tensorflow as hvd
import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="slowmo_hvd")
class SyncBatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]
    """``keras.layers.BatchNormalization`` over the batches of all workers, joined.

    In the place of ``horovod.tensorflow.SyncBatchNormalization``, which Keras 3 cannot make. Two
    things differ from it: a worker counts by its elements, so that batches of unequal sizes or
    with masks are normalized as their concatenation would be; and Keras gives the layer its name,
    so that a model can have several.

    Each call in training is a collective over all ranks, and so is its gradient, which is that of
    the sum of the workers' losses: all ranks must take equally many steps, with layers of equal
    names. Between SlowMo's syncs these are then the only tensors that travel.

    Args:
        fused: must be False.
        **kwargs: those of ``keras.layers.BatchNormalization``.

    Raises:
        ValueError: ``fused`` is not False.
    """

    def __init__(self, fused: bool = False, **kwargs: Any) -> None:
        if fused is not False:
            raise ValueError(
                "SyncBatchNormalization does not support fused=True, and there is nothing else to "
                f"choose, got fused={fused!r}: leave it out"
            )
        super().__init__(**kwargs)
        self.supports_jit = False  # XLA knows none of Horovod's operations

    def _moments(self, inputs: Any, mask: Any) -> tuple[Any, Any]:
        """Mean and variance of every channel over all workers. A collective, in training only."""
        mean, variance = super()._moments(inputs, mask)
        if hvd.size() == 1:
            return mean, variance
        # E[x²] - E[x]² loses a small variance around a large mean, in float32 soon. In float64 it
        # does not, and it is few numbers.
        first = tf.cast(mean, tf.float64)
        second = tf.cast(variance, tf.float64) + tf.square(first)
        count = self._count(inputs, mask) * tf.ones_like(first)
        sums = hvd.allreduce(tf.stack([count * first, count * second, count]), op=hvd.Sum)
        first, second, count = tf.unstack(sums)
        first = tf.math.divide_no_nan(first, count)
        second = tf.math.divide_no_nan(second, count)
        spread = tf.maximum(second - tf.square(first), 0.0)
        return tf.cast(first, mean.dtype), tf.cast(spread, variance.dtype)

    def _count(self, inputs: Any, mask: Any) -> Any:
        """How many elements of this worker's each channel's moments are of, in float64."""
        if mask is None:
            return tf.cast(tf.size(inputs) // tf.shape(inputs)[self.axis], tf.float64)
        kept = tf.broadcast_to(tf.cast(mask, tf.bool)[..., None], tf.shape(inputs))
        return tf.squeeze(tf.reduce_sum(tf.cast(kept, tf.float64), self._reduction_axes))
