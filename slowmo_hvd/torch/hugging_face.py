"""For Hugging Face's Trainer: one model for all workers before it evaluates and saves."""

from typing import Any

import horovod.torch as hvd
import transformers

from slowmo_hvd.torch.optimizer import DistributedOptimizer
from slowmo_hvd.torch.wrappers import layers

__all__ = ["FlushCallback"]


class FlushCallback(transformers.TrainerCallback):
    """Averages SlowMo's workers before the Trainer evaluates or saves, and at the end of training.

    Only rank 0 then saves and logs. Give this callback to the Trainer of every rank, before
    callbacks that stop training. Give all ranks the same TrainingArguments, because these decide
    when to flush.

    Raises:
        TypeError: when training begins, if the optimizer is not SlowMo's.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """Check that there is something to flush, and make rank 0 the Trainer's main process."""
        if _ours(about["optimizer"]) is None:
            raise TypeError(
                "FlushCallback needs a DistributedOptimizer from slowmo_hvd.torch, got "
                f"{type(about['optimizer']).__name__}: give Trainer optimizers=(optimizer, None), "
                "or leave the callback out"
            )
        state.is_world_process_zero = hvd.rank() == 0

    def on_step_end(self, args: Any, state: Any, control: Any, **about: Any) -> Any:
        """Flush, if the Trainer is about to evaluate or save."""
        return _flush(control, **about)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **about: Any) -> Any:
        """Flush, if the Trainer is about to evaluate or save."""
        return _flush(control, **about)

    def on_train_end(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """Flush, so that all ranks have the same model."""
        _of(about["optimizer"]).flush(about["model"])


def _ours(optimizer: Any) -> DistributedOptimizer | None:
    """The optimizer inside Accelerate's wrapper, if it is one of SlowMo's."""
    inside = (each for each in layers(optimizer) if isinstance(each, DistributedOptimizer))
    return next(inside, None)


def _of(optimizer: Any) -> DistributedOptimizer:
    ours = _ours(optimizer)
    assert ours is not None  # checked when training began
    return ours


def _flush(control: Any, optimizer: Any, model: Any, **others: Any) -> Any:
    # Equal on every rank: all count the same steps and have the same arguments.
    if control.should_evaluate or control.should_save:
        _of(optimizer).flush(model)
    if hvd.rank() != 0:
        control.should_save = control.should_log = False
    return control
