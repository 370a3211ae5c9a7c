"""``tf.config.experimental.enable_op_determinism()``, which holds until the process ends."""

import pytest
from jobs import job


@pytest.mark.limit(190)
def test_nothing_of_ours_is_refused_where_tensorflow_is_to_be_deterministic() -> None:
    ended = job(
        2,
        """
        import keras
        import numpy as np
        import tensorflow as tf
        from keras import layers
        from slowmo_hvd.tensorflow.keras import callbacks

        tf.config.experimental.enable_op_determinism()
        keras.utils.set_random_seed(rank)
        words = np.random.default_rng(rank).integers(0, 9, (9, 2))
        late = [layers.Flatten(), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(1)]
        model = keras.Sequential([layers.Embedding(9, 4), *late])  # of a sparse gradient
        optimizer = hvd.DistributedOptimizer(
            keras.optimizers.Adam(0.1),
            sync_period=2,
            buffers="average",
            compression=hvd.Compression.fp16,
            sparse_as_dense=True,
        )
        model.compile(optimizer, loss="mse")
        given = [
            callbacks.BroadcastGlobalVariablesCallback(0),
            callbacks.MetricAverageCallback(),
            callbacks.FlushCallback(),
        ]
        model.fit(words, words.sum(1), batch_size=3, verbose=0, callbacks=given)
        assert optimizer.sync_stats.syncs == 2 and optimizer.sync_stats.seconds > 0
        ours = [variable.numpy() for variable in model.trainable_variables]
        first, second = hvd.allgather_object(ours)
        assert all(np.array_equal(*pair) for pair in zip(first, second, strict=True))
        """,
        timeout=180,
    )
    assert ended.code == 0, ended.output
