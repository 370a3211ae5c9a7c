"""Lightning: one Trainer a rank, of which rank 0's prints and saves.

    horovodrun --gloo -np 2 python examples/torch_lightning.py

Lightning itself knows of one process. What makes it distributed is here: the sampler, SlowMo's
optimizer, its FlushCallback, and that rank 0 alone logs and saves.
"""

import argparse
import logging
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split
from torch.utils.data.distributed import DistributedSampler

import slowmo_hvd.torch as hvd
from slowmo_hvd.torch.lightning import FlushCallback

parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--sync-period", type=int, default=12, help="τ")
parser.add_argument("--folder", type=Path, default=Path("lightning_run"), help="for checkpoints")


class Digits(lightning.LightningModule):
    """A small convolutional network."""

    def __init__(self, lr: float, sync_period: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(128, 10)),
        )

    def configure_optimizers(self) -> hvd.DistributedOptimizer:
        """What makes it distributed."""
        sgd = torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9, nesterov=True)
        return hvd.DistributedOptimizer(
            sgd,
            named_parameters=self.named_parameters(),
            sync_period=self.hparams.sync_period,
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of this rank's batch."""
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """On every rank on all images: all hold one model, and see the same figures."""
        images, labels = batch
        scores = self.net(images)
        self.log("val_loss", F.cross_entropy(scores, labels))
        self.log("val_accuracy", (scores.argmax(1) == labels).float().mean())


def main() -> None:
    args = parser.parse_args()
    hvd.init()
    if hvd.rank() != 0:
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.seed_everything(0, verbose=False)
    torch.set_num_threads(1)  # the workers share one machine's cores
    first = hvd.rank() == 0

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    dataset = TensorDataset(images, torch.tensor(digits.target))
    train_set, val_set = random_split(dataset, [0.7, 0.3])
    sampler = DistributedSampler(train_set, num_replicas=hvd.size(), rank=hvd.rank())
    train_loader = DataLoader(train_set, batch_size=32, sampler=sampler)
    val_loader = DataLoader(val_set, batch_size=256)

    saving = ModelCheckpoint(args.folder, monitor="val_loss")
    callbacks = [FlushCallback(), EarlyStopping("val_loss", patience=5)]
    trainer = lightning.Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=[hvd.local_rank()] if torch.cuda.is_available() else 1,
        max_epochs=args.epochs,
        callbacks=[*callbacks, saving] if first else callbacks,
        enable_checkpointing=first,
        enable_progress_bar=False,
        enable_model_summary=first,
        logger=False,
    )
    trainer.fit(Digits(args.lr, args.sync_period), train_loader, val_loader)
    if first:
        accuracy = trainer.callback_metrics["val_accuracy"].item()
        syncs = trainer.optimizers[0].sync_stats.syncs
        print(f"accuracy {accuracy:.2%}, {syncs} syncs, the best in {saving.best_model_path}")


if __name__ == "__main__":
    main()
