"""Lightning, as a user writes it: configure_optimizers returns the wrapped optimizer."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from models import Linear, same, train, weights
from ranks import equal_on_all_ranks, everyone
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import slowmo_hvd.torch as hvd

# What Lightning warns of by itself: too few workers, a directory used twice, a loader
# without a state, and torch's pytrees.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The 'train_dataloader' does not have many workers",
    "ignore:Checkpoint directory .* exists and is not empty",
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",
    r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated:FutureWarning",
)


class Module(lightning.LightningModule):
    """The user's module, with SlowMo in it."""

    def __init__(self, *, overflow_in: int | None = None) -> None:
        super().__init__()
        self.net = Linear()
        self.overflow_in = overflow_in

    def configure_optimizers(self) -> Any:
        optimizer = hvd.DistributedOptimizer(
            torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9), sync_period=3
        )
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, target = batch
        loss = (self.net(x).float() - target).square().mean()
        return loss * math.inf if batch_idx == self.overflow_in else loss


class Manual(Module):
    """The user's module with manual optimization and a flush where an epoch ends."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm1d(3, affine=False), self.net)
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()

    def on_train_epoch_end(self) -> None:
        optimizer: Any = self.optimizers()
        optimizer.flush(self)


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(hvd.rank())
    for _ in range(8):
        yield torch.randn(5, 3, generator=generator), torch.randn(5, 2, generator=generator)


def loader(first: int = 0) -> DataLoader[Any]:
    """This rank's 8 batches, from the ``first`` on, and round."""
    turned = list(batches())
    xs, targets = zip(*turned[first:], *turned[:first], strict=True)
    return DataLoader(TensorDataset(torch.cat(xs), torch.cat(targets)), batch_size=5)


def trainer(path: Path, **options: Any) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        devices=1,  # Horovod's processes are not Lightning's
        max_epochs=1,
        default_root_dir=path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **({"enable_checkpointing": False} | options),
    )


def optimizer_of(fitted: lightning.Trainer) -> hvd.DistributedOptimizer:
    (optimizer,) = fitted.optimizers
    assert isinstance(optimizer, hvd.DistributedOptimizer)
    return optimizer


@pytest.mark.ranks(1, 2)
def test_it_trains_as_the_plain_loop_does(tmp_path: Path) -> None:
    module, plain = Module(), Module()
    fitted = trainer(tmp_path)
    fitted.fit(module, loader())
    (optimizer,), (schedule,) = plain.configure_optimizers()
    for x, target in batches():
        optimizer.zero_grad()
        (plain.net(x) - target).square().mean().backward()
        optimizer.step()
        schedule["scheduler"].step()
    assert same(weights(module), weights(plain))
    assert optimizer_of(fitted).sync_stats.syncs == 2
    optimizer_of(fitted).flush()
    assert equal_on_all_ranks(module)


@pytest.mark.ranks(1, 2)
def test_gradient_accumulation_counts_optimizer_steps_and_clipping_works(tmp_path: Path) -> None:
    module = Module()
    fitted = trainer(tmp_path, accumulate_grad_batches=2, gradient_clip_val=0.1)
    fitted.fit(module, loader())
    stats = optimizer_of(fitted).sync_stats
    assert stats.last is not None
    assert (stats.syncs, stats.last.step) == (1, 3)  # 8 batches, 4 steps, one window of 3


@pytest.mark.ranks(1, 2)
def test_resuming_from_lightnings_checkpoint_inside_a_window_changes_no_bit(
    tmp_path: Path,
) -> None:
    def checkpointing() -> lightning.Trainer:
        every_fourth = ModelCheckpoint(
            tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1, enable_version_counter=False
        )
        return trainer(tmp_path, enable_checkpointing=True, callbacks=[every_fourth])

    whole, resumed = Module(), Module()
    checkpointing().fit(whole, loader())
    again = checkpointing()
    # Lightning goes on with the fifth batch's number, and asks the loader for its first.
    again.fit(resumed, loader(first=4), ckpt_path=tmp_path / "step=4.ckpt", weights_only=True)
    assert optimizer_of(again).sync_stats.syncs == 1
    assert same(weights(resumed), weights(whole))


@pytest.mark.ranks(1, 2)
def test_manual_optimization_and_a_flush_through_lightnings_own_wrapper(tmp_path: Path) -> None:
    module = Manual()
    fitted = trainer(tmp_path)
    fitted.fit(module, loader())
    assert equal_on_all_ranks([*module.parameters(), *module.buffers()])
    stats = optimizer_of(fitted).sync_stats
    assert stats.syncs == 3
    assert stats.last is not None
    assert stats.last.kind is hvd.Sync.FLUSH


@pytest.mark.ranks(2)
def test_a_broadcast_through_lightnings_own_wrapper_reaches_the_optimizer(tmp_path: Path) -> None:
    class Broadcasting(Manual):
        def on_train_start(self) -> None:
            optimizer: Any = self.optimizers()
            optimizer.param_groups[0]["lr"] = 0.1 + hvd.rank()
            hvd.broadcast_optimizer_state(optimizer, root_rank=0)

    module = Broadcasting()
    fitted = trainer(tmp_path)
    fitted.fit(module, loader())
    assert set(everyone(optimizer_of(fitted).param_groups[0]["lr"])) == {0.1}
    assert equal_on_all_ranks(module)


@pytest.mark.ranks(1, 2)
def test_half_precision_with_an_overflow_on_one_rank(tmp_path: Path) -> None:
    module = Module(overflow_in=1 if hvd.rank() == 0 else None)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    fitted = trainer(tmp_path, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    fitted.fit(module, loader())
    assert optimizer_of(fitted).sync_stats.syncs == 2
    assert scaler.get_scale() == (512 if hvd.rank() == 0 else 1024)
    optimizer_of(fitted).flush()
    assert equal_on_all_ranks(module)
    assert all(weight.isfinite().all() for weight in weights(module))


@pytest.mark.ranks(1)
def test_lightning_itself_refuses_to_clip_for_optimizers_that_unscale(tmp_path: Path) -> None:
    """As for torch's fused optimizers; a module can clip in its configure_gradient_clipping."""
    scaler = torch.amp.GradScaler("cpu")
    fitted = trainer(
        tmp_path, plugins=[MixedPrecision("16-mixed", "cpu", scaler)], gradient_clip_val=1.0
    )
    with pytest.raises(RuntimeError, match="DistributedOptimizer, does not allow for gradient cl"):
        fitted.fit(Module(), loader())


@pytest.mark.ranks(1)
def test_the_module_trains_on_after_lightning(tmp_path: Path) -> None:
    module = Module()
    fitted = trainer(tmp_path)
    fitted.fit(module, loader())
    before = weights(module)
    train(module.net, optimizer_of(fitted), range(3))
    assert not same(weights(module), before)
