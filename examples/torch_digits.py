"""Handwritten digits with SGD and Nesterov momentum.

    horovodrun --gloo -np 2 python examples/torch_digits.py

A Horovod script with SlowMo in it. Two things differ from plain Horovod: the import, and that
`optimizer.flush(model)` comes before evaluation, so that all workers evaluate one model.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split
from torch.utils.data.distributed import DistributedSampler

import slowmo_hvd.torch as hvd

parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--epochs", type=int, default=15)
parser.add_argument("--batch-size", type=int, default=32, help="images a step, of each worker")
parser.add_argument("--lr", type=float, default=0.05)
parser.add_argument("--sync-period", type=int, default=12, help="τ")
parser.add_argument("--slow-momentum", type=float, default=0.2, help="β")
parser.add_argument("--seed", type=int, default=0)


def load_data() -> tuple[TensorDataset, TensorDataset]:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    dataset = TensorDataset(images, torch.tensor(digits.target))
    return random_split(dataset, [0.7, 0.3], generator=torch.Generator().manual_seed(0))


def make_model() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def worker_mean(value: float, name: str) -> float:
    return hvd.allreduce(torch.tensor(value), name=name).item()


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, device: str) -> float:
    """Accuracy over the test images, each worker on its part of them."""
    model.eval()
    right = seen = 0
    for images, labels in loader:
        right += (model(images.to(device)).argmax(1).cpu() == labels).sum().item()
        seen += len(labels)
    return worker_mean(right / seen, "accuracy")


def main() -> None:
    args = parser.parse_args()
    hvd.init()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # the workers share one machine's cores
    device = "cpu"
    if torch.cuda.is_available():
        torch.cuda.set_device(hvd.local_rank())
        device = "cuda"

    train_set, test_set = load_data()
    sampler = DistributedSampler(train_set, num_replicas=hvd.size(), rank=hvd.rank())
    loader = DataLoader(train_set, args.batch_size, sampler=sampler)
    test_sampler = DistributedSampler(test_set, num_replicas=hvd.size(), rank=hvd.rank())
    test_loader = DataLoader(test_set, 256, sampler=test_sampler)

    model = make_model().to(device)
    # Not scaled by hvd.size(), as it would be where gradients are averaged.
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, nesterov=True)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    optimizer = hvd.DistributedOptimizer(
        optimizer,
        named_parameters=model.named_parameters(),
        sync_period=args.sync_period,
        slow_momentum=args.slow_momentum,
    )

    for epoch in range(args.epochs):
        model.train()
        sampler.set_epoch(epoch)
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            total += loss.item()
        optimizer.flush(model)
        train_loss = worker_mean(total / len(loader), "loss")
        accuracy = evaluate(model, test_loader, device)
        if hvd.rank() == 0:
            print(f"epoch {epoch + 1:2}  loss {train_loss:.4f}  test accuracy {accuracy:.2%}")
    if hvd.rank() == 0:
        stats = optimizer.sync_stats
        print(f"{stats.syncs} syncs, {stats.bytes / 1e6:.2f} MB handed to allreduce")


if __name__ == "__main__":
    main()
