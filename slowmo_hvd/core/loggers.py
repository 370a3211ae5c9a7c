"""Sync hooks that write records: as CSV, as lines of JSON, or to Weights & Biases.

Every rank registers them. Only the first rank of the optimizer's process set writes. Elastic
training can change which process that is.
"""

import csv as csv_module
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from slowmo_hvd.core.records import SyncRecord


class Optimizer(Protocol):
    """The part of a DistributedOptimizer that is used here."""

    process_set: Any

    def register_sync_hook(self, hook: Callable[[SyncRecord], None]) -> Any:
        """Call the hook after each sync."""


class Sink(Protocol):
    """Where records are written."""

    def open(self) -> None:
        """Get ready. Called before the first record, on the rank that writes."""

    def write(self, record: SyncRecord) -> None:
        """Write one record."""


def _ratio(record: SyncRecord) -> float:
    return record.drift / record.displacement_norm if record.displacement_norm else 0.0


def _learning_rate(record: SyncRecord) -> float:
    return max(record.learning_rates, key=abs, default=0.0)


#: The numbers of a record that are worth plotting. ``drift_ratio`` is the drift divided by the
#: displacement's norm, or 0 if nothing has moved. ``learning_rate`` is that of the parameter group
#: where it is largest.
FIGURES: dict[str, Callable[[SyncRecord], float]] = {
    "drift": lambda record: record.drift,
    "displacement_norm": lambda record: record.displacement_norm,
    "drift_ratio": _ratio,
    "seconds": lambda record: record.seconds,
    "waiting": lambda record: record.waiting,
    "hidden": lambda record: record.hidden,
    "bytes": lambda record: record.bytes,
    "workers": lambda record: record.workers,
    "excluded": lambda record: len(record.excluded),
    "outliers": lambda record: len(record.outliers),
    "clipped": lambda record: record.clipped,
    "samples": lambda record: record.samples,
    "learning_rate": _learning_rate,
    "sync_period": lambda record: record.sync_period,
    "slow_lr": lambda record: record.slow_lr,
    "slow_momentum": lambda record: record.slow_momentum,
}


def named(record: SyncRecord) -> dict[str, float]:
    """The `FIGURES` of a record, by their names in a dashboard, such as ``slowmo/drift``."""
    return {f"slowmo/{name}": figure(record) for name, figure in FIGURES.items()}


def attach(optimizer: Optimizer, sink: Sink) -> Any:
    """Make the first rank of the optimizer's process set write each record to a sink.

    Returns:
        A handle whose ``remove()`` stops this.
    """
    process_set, is_open = optimizer.process_set, False

    def is_first() -> bool:
        return bool(process_set.included() and process_set.rank() == 0)

    def hook(record: SyncRecord) -> None:
        nonlocal is_open
        if is_first():
            if not is_open:  # another rank was first before
                sink.open()
                is_open = True
            sink.write(record)

    if is_first():  # so that a wrong path fails here, not in a step
        sink.open()
        is_open = True
    return optimizer.register_sync_hook(hook)


def csv(optimizer: Optimizer, path: str | Path) -> Any:
    """Write a row for each sync into a CSV file. If the file exists, rows are appended.

    The columns are ``step``, ``window``, ``kind``, those of `FIGURES`, and ``excluded_ranks``.

    Args:
        optimizer: a DistributedOptimizer. Call this on every rank.
        path: the file's path.

    Raises:
        ValueError: the file exists and has other columns.
        OSError: the file cannot be written.

    Returns:
        A handle whose ``remove()`` stops this.
    """
    return attach(optimizer, _Csv(Path(path)))


def json_lines(optimizer: Optimizer, path: str | Path) -> Any:
    """Append `SyncRecord.asdict` of each sync to a file, as one line of JSON.

    ``python -m slowmo_hvd.plan --records`` reads such a file.

    Args:
        optimizer: a DistributedOptimizer. Call this on every rank.
        path: the file's path.

    Raises:
        OSError: the file cannot be written.

    Returns:
        A handle whose ``remove()`` stops this.
    """
    return attach(optimizer, _JsonLines(Path(path)))


def wandb(optimizer: Optimizer, run: Any = None) -> Any:
    """Log the `FIGURES` of each sync to a run of Weights & Biases, as ``slowmo/drift`` and so on.

    They are plotted against ``slowmo/step``, the number of local steps. Each sync takes one of
    wandb's own steps. So log your other metrics without ``step=``: wandb leaves out those whose
    step is smaller than its own.

    Args:
        optimizer: a DistributedOptimizer. Call this on every rank.
        run: what ``wandb.init()`` returned, on the rank that has a run; None for the current run.

    Raises:
        ImportError: wandb is not installed.
        ValueError: there is no run on the first rank.

    Returns:
        A handle whose ``remove()`` stops this.
    """
    return attach(optimizer, _WandB(run))


class _Csv:
    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self) -> None:
        self._columns = ["step", "window", "kind", *FIGURES, "excluded_ranks"]
        with self._path.open("a+", newline="") as file:
            file.seek(0)
            there = next(csv_module.reader(file), None)
            if there is None:
                csv_module.writer(file).writerow(self._columns)
            elif there != self._columns:
                raise ValueError(
                    f"{self._path} is there and has the columns {', '.join(there)}: give another "
                    "path, or move it away"
                )

    def write(self, record: SyncRecord) -> None:
        excluded = " ".join(map(str, record.excluded))
        figures = (figure(record) for figure in FIGURES.values())
        row = [record.step, record.window, record.kind.value, *figures, excluded]
        with self._path.open("a", newline="") as file:  # so that nothing is lost if the run dies
            csv_module.writer(file).writerow(row)


class _JsonLines:
    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self) -> None:
        self._path.open("a").close()

    def write(self, record: SyncRecord) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(record.asdict()) + "\n")


class _WandB:
    def __init__(self, run: Any) -> None:
        self._run = run

    def open(self) -> None:
        if self._run is None:
            try:
                import wandb
            except ImportError as error:
                raise ImportError(
                    f"loggers.wandb needs wandb: pip install wandb ({error})"
                ) from None
            self._run = wandb.run
        if self._run is None:
            raise ValueError(
                "there is no run of wandb to log to: call wandb.init() before, on rank 0, or give "
                "run="
            )
        self._run.define_metric("slowmo/step")
        self._run.define_metric("slowmo/*", step_metric="slowmo/step")

    def write(self, record: SyncRecord) -> None:
        self._run.log(named(record) | {"slowmo/step": record.step})
