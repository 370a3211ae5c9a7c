"""Spark: the workers are tasks of a Spark job, in place of horovodrun.

    pip install pyspark pyarrow        # and Java 17, or what your Spark asks for
    python examples/torch_spark.py     # on this machine; spark-submit it to a cluster

The training function is a Horovod script's main, with SlowMo in it.
"""

import argparse
import os
import sys

import horovod.spark
import torch
from pyspark.sql import SparkSession
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--workers", type=int, default=2)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--sync-period", type=int, default=12, help="τ")


def train(epochs: int, lr: float, sync_period: int) -> dict[str, float]:
    """What each worker does; its result goes back to the driver."""
    import slowmo_hvd.torch as hvd

    hvd.init()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
    labels = torch.tensor(digits.target)
    mine = torch.arange(hvd.rank(), len(labels), hvd.size())
    images, labels = images[mine], labels[mine]

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    sgd = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True)
    optimizer = hvd.DistributedOptimizer(
        sgd, named_parameters=model.named_parameters(), sync_period=sync_period
    )
    for epoch in range(epochs):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        for batch in order[: len(order) // 32 * 32].split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    optimizer.flush(model)
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
    checksum = sum(param.double().sum().item() for param in model.parameters())
    return {"accuracy": accuracy, "checksum": checksum, "syncs": optimizer.sync_stats.syncs}


def main() -> None:
    args = parser.parse_args()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else the system's own Python
    session = SparkSession.builder.master(f"local[{args.workers}]").appName("slowmo").getOrCreate()
    try:
        results = horovod.spark.run(
            train, args=(args.epochs, args.lr, args.sync_period), num_proc=args.workers
        )
    finally:
        session.stop()
    for rank, result in enumerate(results):
        print(f"rank {rank}: {result}")
    assert len({result["checksum"] for result in results}) == 1, "the workers' models differ"


if __name__ == "__main__":
    main()
