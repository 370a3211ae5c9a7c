"""What a healthy run looks like in its syncs, and three that are not.

    horovodrun --gloo -np 4 python examples/sick_runs.py

trains four times on handwritten digits, logs each run's syncs with `hvd.loggers.csv`, and draws
them: as it should be; with a slow momentum that is too large; with a learning rate that is too
large; and with one worker whose labels are wrong.
"""

import argparse
import csv
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import slowmo_hvd.torch as hvd

RUNS = {
    "healthy": {},
    "β = 0.95": {"slow_momentum": 0.95},
    "a learning rate of 0.5": {"lr": 0.5},
    "one worker has wrong labels": {"wrong_on": 1},
}

parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--folder", type=Path, default=Path("sick_runs"), help="of the CSV files")
parser.add_argument("--plot", type=Path, default=Path("sick_runs.png"))


def make_model() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def train(
    path: Path, epochs: int, lr: float = 0.05, slow_momentum: float = 0.4, wrong_on: int = -1
) -> None:
    """One run; its syncs go to this file."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    mine = torch.arange(hvd.rank(), len(labels), hvd.size())
    images, labels = images[mine], labels[mine]
    if hvd.rank() == wrong_on:
        labels = (labels + 1) % 10

    torch.manual_seed(0)
    model = make_model()
    sgd = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True)
    optimizer = hvd.DistributedOptimizer(sgd, sync_period=12, slow_momentum=slow_momentum)
    hvd.loggers.csv(optimizer, path)
    for epoch in range(epochs):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        for batch in order[: len(order) // 32 * 32].split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()


def draw(folder: Path, plot: Path) -> None:
    """Drift, displacement and their ratio by local steps, a column for each run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(RUNS), figsize=(13, 5), sharex=True, sharey="row")
    for (above, below), (place, name) in zip(axes.T, enumerate(RUNS), strict=True):
        with (folder / f"{place}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        steps = [int(row["step"]) for row in rows]
        for column, label in (("drift", "drift"), ("displacement_norm", "displacement")):
            above.plot(steps, [float(row[column]) for row in rows], label=label)
        below.plot(steps, [float(row["drift_ratio"]) for row in rows], color="tab:green")
        above.set_title(name)
        above.set_yscale("log")
        below.set_yscale("log")
        below.set_xlabel("local steps")
    axes[0][0].legend()
    axes[0][0].set_ylabel("norm")
    axes[1][0].set_ylabel("drift over displacement")
    figure.tight_layout()
    figure.savefig(plot, dpi=110)


def main() -> None:
    args = parser.parse_args()
    hvd.init()
    torch.set_num_threads(1)
    if hvd.rank() == 0:
        args.folder.mkdir(exist_ok=True)
        for old in args.folder.glob("*.csv"):
            old.unlink()
    hvd.barrier()
    for place, (name, settings) in enumerate(RUNS.items()):
        if hvd.rank() == 0:
            print(f"{name} ...", flush=True)
        train(args.folder / f"{place}.csv", args.epochs, **settings)
    if hvd.rank() == 0:
        draw(args.folder, args.plot)
        print(f"drawn: {args.plot.resolve()}")


if __name__ == "__main__":
    main()
