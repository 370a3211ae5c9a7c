"""A run that can be killed and started again, and then goes on where its last checkpoint was.

    horovodrun --gloo -np 2 python examples/torch_resume.py --die-at-step 150
    horovodrun --gloo -np 2 python examples/torch_resume.py

Only rank 0 writes and reads the checkpoint, so the workers need no common disk.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import slowmo_hvd.torch as hvd

parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
parser.add_argument("--epochs", type=int, default=10, help="the same at every start")
parser.add_argument("--batch-size", type=int, default=32, help="images a step, of each worker")
parser.add_argument("--lr", type=float, default=0.05)
parser.add_argument("--die-at-step", type=int, help="die without a word, to try the resuming")


def save(path: Path, state: dict[str, Any]) -> None:
    """Write to another file first: whoever kills us, ``path`` holds a whole checkpoint."""
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def main() -> None:
    args = parser.parse_args()
    hvd.init()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the workers share one machine's cores
    device = "cpu"
    if torch.cuda.is_available():
        torch.cuda.set_device(hvd.local_rank())
        device = "cuda"

    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    dataset = TensorDataset(images, torch.tensor(digits.target))
    sampler = DistributedSampler(dataset, num_replicas=hvd.size(), rank=hvd.rank())
    loader = DataLoader(dataset, args.batch_size, sampler=sampler)

    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, nesterov=True)
    # The inner momentum is averaged, so that rank 0's checkpoint holds all that there is.
    optimizer = hvd.DistributedOptimizer(
        optimizer, named_parameters=model.named_parameters(), buffers="average"
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(loader))

    progress: dict[str, Any] = {"epoch": 0, "step": 0, "scheduler": scheduler.state_dict()}
    if hvd.rank() == 0 and args.checkpoint.exists():
        saved = torch.load(args.checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        progress = saved["progress"]
        print(f"resuming after epoch {progress['epoch']}, step {progress['step']}")
    # The same three calls begin a new run and resume an old one.
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    progress = hvd.broadcast_object(progress, root_rank=0)
    scheduler.load_state_dict(progress["scheduler"])
    step = progress["step"]

    for epoch in range(progress["epoch"], args.epochs):
        sampler.set_epoch(epoch)
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            scheduler.step()
            step += 1
            total += loss.item()
            if step == args.die_at_step:
                os._exit(1)
        # All ranks: a sync, after which rank 0's model and slow state are everyone's.
        optimizer.flush(model)
        train_loss = hvd.allreduce(torch.tensor(total / len(loader)), name="loss").item()
        if hvd.rank() == 0:
            progress = {"epoch": epoch + 1, "step": step, "scheduler": scheduler.state_dict()}
            model_state, optimizer_state = model.state_dict(), optimizer.state_dict()
            state = {"model": model_state, "optimizer": optimizer_state, "progress": progress}
            save(args.checkpoint, state)
            print(f"epoch {epoch + 1:2}  step {step:4}  loss {train_loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
