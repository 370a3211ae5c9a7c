"""Elastic training with Keras, for the runs with faults. Run by horovodrun through cluster.py."""

from collections.abc import Iterable
from typing import Any

import horovod.tensorflow as horovod
import keras
import numpy as np
import tensorflow as tf
from faults.elastic.problem import BATCH, batch, evaluation, learning_rate
from faults.elastic.worker import Worker

import slowmo_hvd.tensorflow.keras as hvd

elastic = hvd.elastic


def network(seed: int) -> keras.Model:
    """Weights drawn from the seed and the rank: rank 0's count, after the first sync."""
    start = seed * 10007 + horovod.rank() * 101
    layers = [
        keras.Input((8,)),
        *(
            keras.layers.Dense(
                units,
                activation,
                kernel_initializer=keras.initializers.RandomNormal(stddev=0.3, seed=start + units),
            )
            for units, activation in ((16, "tanh"), (1, None))
        ),
    ]
    return keras.Sequential(layers)


def with_tape(worker: Worker, model: keras.Model, state: Any) -> None:
    """A training loop of one's own."""
    plan, optimizer = worker.plan, state.optimizer

    @tf.function
    def step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = keras.ops.mean((model(x, training=True) - y) ** 2)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    @elastic.run
    def train(state: Any) -> None:
        worker.begin()
        while state.step < plan.steps:
            worker.wait_for_size()
            optimizer.learning_rate = learning_rate(state.step, plan.steps)
            worker.before_step()
            step(*batch(plan.seed, state.step, horovod.rank()))
            state.step += 1
            worker.after_step()
            if state.step % plan.commit_every == 0:
                state.commit()
        optimizer.flush()

    if plan.step_before:
        step(*batch(plan.seed, 0, horovod.rank()))
    train(state)


class Steps(keras.callbacks.Callback):  # type: ignore[misc]
    """Counts steps, and does before and after each what the loop above does."""

    def __init__(self, worker: Worker, state: Any) -> None:
        super().__init__()
        self.worker, self.state = worker, state

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.worker.wait_for_size()
        self.model.optimizer.learning_rate = learning_rate(self.state.step, self.worker.plan.steps)
        self.worker.before_step()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.state.step += 1
        self.worker.after_step()


def with_fit(worker: Worker, model: keras.Model, state: Any) -> None:
    """``model.fit`` with Horovod's callbacks: every epoch is as many steps as a commit."""
    plan = worker.plan

    @elastic.run
    def train(state: Any) -> None:
        worker.begin()
        left = range(state.step, plan.steps)
        drawn = [batch(plan.seed, step, horovod.rank()) for step in left]
        x, y = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
        callbacks = [
            Steps(worker, state),
            elastic.CommitStateCallback(state, batches_per_commit=plan.commit_every),
        ]
        model.fit(x, y, len(x) // len(left), 1, verbose=0, shuffle=False, callbacks=callbacks)

    if plan.step_before:
        model.fit(*batch(plan.seed, 0, horovod.rank()), BATCH, 1, verbose=0)
    train(state)


def main() -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    horovod.init()
    plan = Worker.plan_of_run()
    model = network(plan.seed)
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(0.1, momentum=0.9),
        buffers="reset",  # so that all of the state is equal on all ranks where a window begins
        sync_period=plan.sync_period,
        bucket_bytes=256,  # three buckets
        overlap_steps=plan.overlap_steps,
        fragments=plan.fragments,
    )
    model.compile(optimizer, "mse", jit_compile=False)
    state = elastic.KerasState(model, step=0)

    def contents() -> Iterable[Any]:
        return [variable.numpy() for variable in (*model.variables, *optimizer.variables)]

    worker = Worker(horovod, state, contents)
    worker.watch_copy(state, "_save_variables")
    worker.watch_elastic_sync(state, "_broadcast")
    optimizer.register_sync_hook(worker.sync_hook)
    (with_fit if plan.fit else with_tape)(worker, model, state)
    x, y = evaluation()
    worker.finish(float(np.mean((model.predict_on_batch(x) - y) ** 2)))


if __name__ == "__main__":
    main()
