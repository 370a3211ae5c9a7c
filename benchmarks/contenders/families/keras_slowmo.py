"""Ours in Keras."""

from typing import Any

import slowmo_hvd.tensorflow as hvd
from benchmarks.contenders.families.cycle import send_seldom
from benchmarks.contenders.families.keras_trainer import KerasTrainer, inner_of, prepare
from benchmarks.contenders.families.overlap import pace
from benchmarks.contenders.protocol import Setting, Work


class SlowMoTrainer(KerasTrainer):
    """Keeps what the optimizer records of its syncs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seconds: list[float] = []
        self._optimizer.register_sync_hook(lambda record: self._seconds.append(record.seconds))

    def finish(self) -> None:
        """The last average."""
        self._optimizer.flush()

    def sync_seconds(self) -> list[float]:
        """The optimizer's own record."""
        return self._seconds


def make(work: Work, setting: Setting, *, overlap: float = 0.0) -> SlowMoTrainer:
    send_seldom()
    hvd.init()
    prepare(setting)
    optimizer = hvd.DistributedOptimizer(
        inner_of(work, setting),
        sync_period=setting.period,
        **pace(setting.period, overlap=overlap),
    )
    return SlowMoTrainer(work, optimizer, setting.period)
