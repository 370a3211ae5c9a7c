"""A long run of small steps: does memory stay flat, and do all ranks hold one anchor at the end?

Run by ``horovodrun -np 4 python -m benchmarks.soak --framework torch --steps 20000``. It prints a
table, and fails where resident memory has drifted by 1% or more since the warm-up, or where two
ranks' anchors differ in one bit.
"""

import argparse
import hashlib
import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil

SYNC_PERIOD = 4
WARM_UP = 0.1  # of the steps: allocators and caches grow to their size
DRIFT = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--framework", choices=["torch", "tensorflow"], default="torch")
    parser.add_argument("--steps", type=int, default=20_000)
    arguments = parser.parse_args()
    hvd: Any = importlib.import_module(f"slowmo_hvd.{arguments.framework}")
    hvd.init()
    step, anchors = {"torch": in_torch, "tensorflow": in_tensorflow}[arguments.framework](hvd)
    warm_up = int(arguments.steps * WARM_UP)
    begin = 0
    for number in range(1, arguments.steps + 1):
        step()
        if number == warm_up:
            begin = resident()
        if hvd.rank() == 0 and number % max(arguments.steps // 10, 1) == 0:
            print(f"step {number}: {resident() / 2**20:.1f} MiB on rank 0", flush=True)
    end = resident()
    digest = hashlib.sha256(b"".join(anchor.tobytes() for anchor in anchors())).hexdigest()
    ends = hvd.allgather_object((begin, end, digest))
    if hvd.rank() == 0:
        report(arguments.framework, arguments.steps, ends)
    drift = max(abs(last / first - 1) for first, last, _ in ends)
    sys.exit(drift >= DRIFT or len({digest for _, _, digest in ends}) > 1)


def resident() -> int:
    """Bytes of this process in memory."""
    rss: int = psutil.Process().memory_info().rss
    return rss


def report(framework: str, steps: int, ends: list[tuple[int, int, str]]) -> None:
    print(f"{framework}, {len(ends)} ranks, {steps} steps, a sync every {SYNC_PERIOD}")
    print("rank  MiB after warm-up  MiB at the end    drift  anchor")
    for rank, (first, last, digest) in enumerate(ends):
        print(
            f"{rank:4}  {first / 2**20:17.1f}  {last / 2**20:14.1f}  "
            f"{(last / first - 1) * 100:+6.2f}%  {digest[:16]}"
        )
    same = len({digest for _, _, digest in ends}) == 1
    print(f"anchors {'equal bit for bit' if same else 'DIFFER'} on all ranks")


def batch(rank: int) -> Callable[[], tuple[Any, Any]]:
    """Draws this worker's batches."""
    generator = np.random.default_rng(rank)

    def draw() -> tuple[Any, Any]:
        x = generator.standard_normal((8, 16), dtype=np.float32)
        return x, np.sin(x[:, :2])

    return draw


def in_torch(hvd: Any) -> tuple[Callable[[], None], Callable[[], list[Any]]]:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2))
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), sync_period=SYNC_PERIOD
    )
    draw = batch(hvd.rank())

    def step() -> None:
        x, y = map(torch.from_numpy, draw())
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()

    def anchors() -> list[Any]:
        return [anchor.numpy() for anchor in optimizer.state_dict()["slowmo"]["anchor"].values()]

    return step, anchors


def in_tensorflow(hvd: Any) -> tuple[Callable[[], None], Callable[[], list[Any]]]:
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((16,)), keras.layers.Dense(64, activation="tanh"), keras.layers.Dense(2)]
    )
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(0.01, momentum=0.9), sync_period=SYNC_PERIOD
    )
    draw = batch(hvd.rank())

    @tf.function(autograph=False)
    def train(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    def step() -> None:
        train(*map(tf.constant, draw()))

    def anchors() -> list[Any]:
        return [v.numpy() for v in optimizer.variables if v.path.endswith("_anchor")]

    return step, anchors


if __name__ == "__main__":
    main()
