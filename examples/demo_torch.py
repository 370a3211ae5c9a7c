"""What each PyTorch worker of the demo does: every method in turn, on the same data and order.

Started by `demo.py`, under horovodrun.
"""

import argparse
import json
import time
from collections.abc import Iterator

import horovod.torch
import torch
from demo import parse_arguments
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import slowmo_hvd.torch as hvd

TEST_IMAGES = 540  # of the 1797 that scikit-learn carries


def train_all(args: argparse.Namespace) -> None:
    """Train with each method from each seed; rank 0 prints a JSON object at each sync."""
    hvd.init()
    torch.set_num_threads(1)  # the workers share this machine's cores
    # β, or None for Horovod's own optimizer, which averages gradients at every step.
    methods = {"Horovod's own": None, "Local SGD": 0.0}
    methods |= {f"SlowMo β={beta:g}": beta for beta in args.slow_momentum}
    for seed in range(args.seeds):
        for method, beta in methods.items():
            Run(method, beta, seed, args).train()


def load_images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, then those of the test: the same split on every worker."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return images[train], labels[train], images[test], labels[test]


def make_model() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


class Run:
    """One training of one method."""

    def __init__(
        self, method: str, beta: float | None, seed: int, args: argparse.Namespace
    ) -> None:
        self.method, self.beta, self.seed, self.args = method, beta, seed, args
        self.images, self.labels, self.test_images, self.test_labels = load_images()
        self.steps = args.epochs * (len(self.labels) // args.global_batch)
        self.step = 0
        torch.manual_seed(seed)
        self.model = make_model()
        hvd.broadcast_parameters(self.model.state_dict(), root_rank=0)
        sgd = torch.optim.SGD(self.model.parameters(), lr=args.lr, momentum=0.9, nesterov=True)
        named = self.model.named_parameters()
        if beta is None:
            self.optimizer = horovod.torch.DistributedOptimizer(sgd, named_parameters=named)
        else:
            self.optimizer = hvd.DistributedOptimizer(
                sgd, named_parameters=named, sync_period=args.sync_period, slow_momentum=beta
            )
            # Right after a sync all workers hold one model: the time to look at it.
            self.optimizer.register_sync_hook(lambda record: self.report())

    def train(self) -> None:
        """Train for the whole budget, and report at each sync and at the end."""
        self.begin = time.perf_counter()
        self.paused = 0.0  # seconds spent on reports
        for epoch in range(self.args.epochs):
            for batch in self.batches(epoch):
                self.step += 1
                self.optimizer.zero_grad()
                loss = F.cross_entropy(self.model(self.images[batch]), self.labels[batch])
                loss.backward()
                self.optimizer.step()
                if self.beta is None and self.step % self.args.sync_period == 0:
                    self.report()
        if self.beta is not None:
            self.optimizer.flush(self.model)  # all workers end with one model
        self.report(accuracy=self.measure(self.test_images, self.test_labels)[1])

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """This worker's part of each global batch, as indices; the same for every method."""
        generator = torch.Generator().manual_seed(1000 * self.seed + epoch)
        order = torch.randperm(len(self.labels), generator=generator)
        for batch in order.split(self.args.global_batch):
            if len(batch) == self.args.global_batch:
                yield batch[hvd.rank() :: hvd.size()]

    def report(self, **more: float) -> None:
        """Print where the run stands. Every worker takes part in measuring."""
        seconds = time.perf_counter() - self.begin - self.paused
        loss, _ = self.measure(self.images, self.labels)
        if self.beta is None:
            syncs, sent = self.step, 4 * self.step * sum(p.numel() for p in self.model.parameters())
        else:
            syncs, sent = self.optimizer.sync_stats.syncs, self.optimizer.sync_stats.bytes
        look = {"method": self.method, "seed": self.seed, "step": self.step, "steps": self.steps}
        look |= {"loss": loss, "syncs": syncs, "bytes": sent, "seconds": seconds}
        if hvd.rank() == 0:
            print(json.dumps(look | more), flush=True)
        self.paused = time.perf_counter() - self.begin - seconds

    @torch.no_grad()
    def measure(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        """Loss and accuracy of the model, each worker on its part of the images."""
        mine = slice(hvd.rank(), None, hvd.size())
        logits = self.model(images[mine])
        loss = F.cross_entropy(logits, labels[mine], reduction="sum")
        right = (logits.argmax(1) == labels[mine]).sum()
        sums = hvd.allreduce(torch.stack([loss, right]), op=hvd.Sum, name="measure")
        return (sums[0] / len(labels)).item(), (sums[1] / len(labels)).item()


if __name__ == "__main__":
    train_all(parse_arguments())
