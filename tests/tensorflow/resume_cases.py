"""Save or resume the cases of the matrix: ``python resume_cases.py save|resume FOLDER [all]``.

A case is an inner optimizer, a strategy for its buffers, a position in a window and a pace, of a
model with a layer in float32 and one in bfloat16. ``save`` trains without a break, and writes the
model on the way and what it is in the end. ``resume`` loads it, goes on, and reports what does not
end there, bit for bit. With ``all`` these are all cases, and else each optimizer is in one, and
each strategy in one at each position.
"""

import itertools
import json
import sys
from pathlib import Path
from typing import NamedTuple

import keras
import tensorflow as tf
from keras_models import batch, model_of_two_dtypes, step_function, weights
from keras_optimizers import INNER, STRATEGIES

import slowmo_hvd.tensorflow as hvd

STEPS, PERIOD = 6, 3
POSITIONS = tuple(range(1, PERIOD + 2))  # in a window, at its end, and past the reset there


PACES = [{"overlap_steps": 2}, {"overlap_steps": 2, "fragments": 2}]


class Case(NamedTuple):
    name: str
    strategy: str
    at: tuple[int, ...]  # after which steps it is saved
    pace: dict[str, int]


def cases(every: bool) -> list[Case]:
    # With averages under way: launched after the third step, or the first and the third.
    paced = [
        Case(name, strategy, POSITIONS if every else (3, 4), pace)
        for name, strategy in (("SGD", "reset"), ("Adam", "maintain"))
        for pace in PACES
    ]
    if every:
        return paced + [Case(n, s, POSITIONS, {}) for n in INNER for s in STRATEGIES]
    turns = itertools.cycle(itertools.product(STRATEGIES, POSITIONS))
    each = zip(INNER, turns, strict=False)
    return paced + [Case(name, strategy, (done,), {}) for name, (strategy, done) in each]


def save(path: Path, case: Case) -> None:
    model = model_of_two_dtypes()
    optimizer = hvd.DistributedOptimizer(
        INNER[case.name](), sync_period=PERIOD, buffers=case.strategy, **case.pace
    )
    model.compile(optimizer=optimizer, loss="mse")
    step = step_function(model, optimizer)
    for done in range(STEPS):
        if done in case.at:
            model.save(f"{path}.{done}.keras")
        step(*map(tf.constant, batch(done)))
    ends = [*weights(model), *weights(optimizer.variables)]
    Path(f"{path}.end").write_text(json.dumps([array.tobytes().hex() for array in ends]))


def resume(path: Path, done: int) -> bool:
    """Whether the run that goes on after ``done`` steps ends as it did without a break."""
    model = keras.saving.load_model(f"{path}.{done}.keras", safe_mode=True)
    step = step_function(model, model.optimizer)
    for later in range(done, STEPS):
        step(*map(tf.constant, batch(later)))
    ends = [*weights(model), *weights(model.optimizer.variables)]
    return [array.tobytes().hex() for array in ends] == json.loads(Path(f"{path}.end").read_text())


def main(command: str, folder: str, which: str = "some") -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    hvd.init()
    resumed, parted = 0, []
    for index, case in enumerate(cases(which == "all")):
        path = Path(folder) / f"{index}.{hvd.rank()}"
        if command == "save":
            save(path, case)
            continue
        for done in case.at:
            resumed += 1
            if not resume(path, done):
                parted.append(f"{case}, after step {done}")
    report = {"resumed": resumed, "parted": parted}
    (Path(folder) / f"{command}.{hvd.rank()}").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
