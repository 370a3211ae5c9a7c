"""Ours in PyTorch."""

from typing import Any

import slowmo_hvd.torch as hvd
from benchmarks.contenders.families.cycle import send_seldom
from benchmarks.contenders.families.horovod_torch import HorovodTrainer
from benchmarks.contenders.families.overlap import pace
from benchmarks.contenders.families.torch_trainer import inner_of, model_of
from benchmarks.contenders.protocol import Setting, Work


class SlowMoTrainer(HorovodTrainer):
    """Keeps what the optimizer records of its syncs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seconds: list[float] = []
        self._optimizer.register_sync_hook(lambda record: self._seconds.append(record.seconds))

    def finish(self) -> None:
        """The last average."""
        self._optimizer.flush(self._model)

    def sync_seconds(self) -> list[float]:
        """The optimizer's own record."""
        return self._seconds


def make(
    work: Work,
    setting: Setting,
    *,
    fp16: bool = False,
    overlap: float = 0.0,
    fragments: bool = False,
    **slowmo: Any,
) -> SlowMoTrainer:
    send_seldom()
    hvd.init()
    model = model_of(work, setting)
    optimizer = hvd.DistributedOptimizer(
        inner_of(work, setting, model),
        named_parameters=model.named_parameters(),
        compression=hvd.Compression.fp16 if fp16 else hvd.Compression.none,
        sync_period=setting.period,
        **pace(setting.period, overlap=overlap, fragments=fragments),
        **slowmo,
    )
    return SlowMoTrainer(work, model, optimizer, setting.period)
