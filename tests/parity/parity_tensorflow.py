"""The TensorFlow adapter through the parity plan; run by test_parity.py under horovodrun."""

import sys
from pathlib import Path

import keras
import tensorflow as tf
from parity_plan import BETAS, EPSILON, MOMENTUM, Case, drive
from problem import X0

import slowmo_hvd.tensorflow as hvd


class Training:
    def __init__(self, case: Case) -> None:
        self.variables = [tf.Variable(value, dtype=tf.float64) for value in X0]
        if case.inner == "SGD":
            self.inner = keras.optimizers.SGD(0.1, momentum=MOMENTUM)
        else:
            self.inner = keras.optimizers.Adam(0.1, *BETAS, epsilon=EPSILON)
        self.optimizer = hvd.DistributedOptimizer(self.inner, **case.slowmo)
        self.optimizer.build(self.variables)
        self.flush = self.optimizer.flush
        self.apply = tf.function(
            lambda grads: self.optimizer.apply_gradients(zip(grads, self.variables, strict=True))
        )
        self.lr = case.lr(0)

    def step(self, lr, gradient_at):
        # Keras keeps the learning rate inside SGD's velocity, torch outside: a new one corrects it.
        for velocity in getattr(self.inner, "momentums", []):
            velocity.assign(velocity * (lr / self.lr))
        self.lr = lr
        self.optimizer.learning_rate = lr
        grads = gradient_at([variable.numpy() for variable in self.variables])
        self.apply([tf.constant(grad, tf.float64) for grad in grads])

    def weights(self):
        return [variable.numpy() for variable in self.variables]


hvd.init()
tf.config.threading.set_intra_op_parallelism_threads(1)
drive(Training, hvd.rank(), Path(sys.argv[1]), "tensorflow")
