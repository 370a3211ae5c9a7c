"""For Lightning: one model for all workers before each validation and at the end of each epoch."""

from typing import Any

import lightning

from slowmo_hvd.torch.optimizer import DistributedOptimizer

__all__ = ["FlushCallback"]


class FlushCallback(lightning.Callback):
    """Averages SlowMo's workers before each validation and at the end of each epoch.

    Validation then measures the workers' average, with averaged running statistics, and checkpoints
    that are saved after it contain that average. Each flush ends a window early, so an epoch should
    have many windows. Give this callback to the Trainer of every rank, because a flush is a
    collective.

    Raises:
        TypeError: when ``fit`` begins, if no optimizer is SlowMo's.
    """

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check that there is something to flush."""
        if not _ours(trainer):
            names = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers)
            raise TypeError(
                "FlushCallback needs a DistributedOptimizer from slowmo_hvd.torch, got "
                f"{names or 'none'}: return one from configure_optimizers, or leave the callback "
                "out"
            )

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Flush, if this is a validation in ``fit`` and not the check before the first step."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            _flush(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Flush. After a validation this does nothing."""
        _flush(trainer, pl_module)


def _ours(trainer: Any) -> list[DistributedOptimizer]:
    return [each for each in trainer.optimizers if isinstance(each, DistributedOptimizer)]


def _flush(trainer: Any, model: Any) -> None:
    first, *others = _ours(trainer)
    first.flush(model)  # its running statistics are averaged once
    for optimizer in others:
        optimizer.flush()
