"""Which slow momentum learnt best, by the number of workers.

The figures are those of the experiments' table ``fashion.workers``: SGD with Nesterov momentum on
Fashion-MNIST, τ = 12, each β at its own best learning rate, the mean of five seeds.
"""

import math
from typing import NamedTuple


class Learnt(NamedTuple):
    """What was learnt with a number of workers.

    Attributes:
        workers: m.
        slow_momentum: the β of 0, 0.2, 0.4, 0.6 and 0.8 with the lowest loss on the validation
            split.
        accuracy: with this β, on the test split, in percent.
        without: the same with β = 0.
    """

    workers: int
    slow_momentum: float
    accuracy: float
    without: float


LEARNT = (
    Learnt(2, 0.6, 91.69, 91.13),
    Learnt(4, 0.6, 91.43, 91.35),
    Learnt(8, 0.4, 91.17, 91.03),
    Learnt(16, 0.2, 90.84, 90.62),
    Learnt(32, 0.2, 89.55, 89.41),
)


def nearest(workers: int) -> Learnt:
    """What was learnt with the number of workers that is nearest to this one, by their ratio."""
    return min(LEARNT, key=lambda learnt: abs(math.log(learnt.workers / workers)))


def momentum_advice(workers: int) -> str:
    """A sentence about β."""
    learnt = nearest(workers)
    return (
        f"slow_momentum={learnt.slow_momentum:g} learnt best with {learnt.workers} workers in an "
        f"experiment with SGD: {learnt.accuracy:.2f}% against {learnt.without:.2f}% without"
    )
