"""Batch normalization over the batches of all workers."""

from typing import Any

import horovod.tensorflow as hvd
import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="slowmo_hvd")
class SyncBatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]
    """``keras.layers.BatchNormalization`` over the joined batches of all workers.

    It replaces ``horovod.tensorflow.SyncBatchNormalization``, which cannot be made with Keras 3. It
    differs from that in two ways. A worker counts by its number of elements, so batches of unequal
    sizes, or with masks, are normalized as their concatenation would be. And Keras gives the layer
    its name, so a model can have several of them, and the name can differ between ranks.

    Each call in training is a collective over all ranks. So is its gradient, which is that of the
    sum of the workers' losses. So all ranks must take the same number of steps. Between SlowMo's
    syncs, only these tensors travel.

    Args:
        fused: must be False.
        **kwargs: arguments of ``keras.layers.BatchNormalization``.

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
        self.supports_jit = False  # XLA does not support Horovod's operations

    def _moments(self, inputs: Any, mask: Any) -> tuple[Any, Any]:
        """Mean and variance of each channel over all workers. A collective, only in training."""
        mean, variance = super()._moments(inputs, mask)
        if hvd.size() == 1:
            return mean, variance
        # In float32, E[x²] - E[x]² soon loses a small variance around a large mean. In float64 it
        # does not, and these are only a few numbers.
        first = tf.cast(mean, tf.float64)
        second = tf.cast(variance, tf.float64) + tf.square(first)
        count = self._count(inputs, mask) * tf.ones_like(first)
        sums = _sum_over_workers(tf.stack([count * first, count * second, count]))
        first, second, count = tf.unstack(sums)
        first = tf.math.divide_no_nan(first, count)
        second = tf.math.divide_no_nan(second, count)
        spread = tf.maximum(second - tf.square(first), 0.0)
        return tf.cast(first, mean.dtype), tf.cast(spread, variance.dtype)

    def _count(self, inputs: Any, mask: Any) -> Any:
        """The number of this worker's elements in each channel's moments, in float64."""
        if mask is None:
            return tf.cast(tf.size(inputs) // tf.shape(inputs)[self.axis], tf.float64)
        kept = tf.broadcast_to(tf.cast(mask, tf.bool)[..., None], tf.shape(inputs))
        return tf.squeeze(tf.reduce_sum(tf.cast(kept, tf.float64), self._reduction_axes))


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _sum_over_workers(tensor: Any) -> tuple[Any, Any]:
    return _sum(tensor, "forward"), lambda upstream: _sum(upstream, "backward")


def _sum(tensor: Any, way: str) -> Any:
    # Horovod matches operations by name. By default these are the names of the layers, which differ
    # between ranks that have built different models before. Outside of all scopes the graph numbers
    # operations with the same name, in the order in which they are made.
    with tf.compat.v1.name_scope(None):
        return hvd.allreduce(
            tensor,
            op=hvd.Sum,
            name=f"HorovodAllreduce.slowmo.sync_batch_norm.{way}",
            ignore_name_scope=True,
        )
