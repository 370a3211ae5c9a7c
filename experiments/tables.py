"""The tables: which trainings each of them needs."""

import dataclasses
from collections.abc import Mapping, Sequence

from experiments.settings import DILOCO_MOMENTUM, Setting

SEEDS = 5
BETAS = (0.2, 0.4, 0.6, 0.8)
PERIODS = (4, 12, 48, 120)
WORKERS = (2, 4, 8, 16, 32)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: what it shows.
        rows: its settings, by what each row is called.
    """

    title: str
    rows: Mapping[str, Setting]


def _methods(task: str, workers: int, local: str, *, all_of_them: bool = True) -> Table:
    def setting(method: str, slow_momentum: float = 0.0, sync_period: int = 12) -> Setting:
        return Setting(task, method, workers, sync_period, slow_momentum)

    rows = {"gradient averaging": setting("averaging", sync_period=1), local: setting("slowmo")}
    rows |= {f"SlowMo, β = {beta}": setting("slowmo", beta) for beta in BETAS}
    rows["DiLoCo's outer step"] = setting("diloco", DILOCO_MOMENTUM)
    if all_of_them:
        lone = Setting(task, "snoo", 1, 12, DILOCO_MOMENTUM, batch_factor=workers)
        rows |= {
            f"post-local, {local}": setting("post-local"),
            f"{local}, QSR": setting("qsr", sync_period=4),
            "BMUF, β = 0.4: u not divided by γ": setting("bmuf", 0.4),
            "SNOO: one worker, m times the batch": lone,
        }
    return Table(f"{task}: methods, m = {workers}, τ = 12", rows)


def _periods(task: str, workers: int, betas: Sequence[float]) -> Table:
    rows = {
        f"τ = {period}, β = {beta:g}": Setting(task, "slowmo", workers, period, beta)
        for period in PERIODS
        for beta in betas
    }
    return Table(f"{task}: the effect of τ, m = {workers}", rows)


def _workers(task: str, counts: Sequence[int]) -> Table:
    rows = {
        f"m = {workers}, β = {beta:g}": Setting(task, "slowmo", workers, 12, beta)
        for workers in counts
        for beta in (0.0, *BETAS)
    }
    return Table(f"{task}: the effect of β by number of workers, τ = 12", rows)


def _buffers(task: str, workers: int, auto: str, beta: float) -> Table:
    rows = {
        f"β = {momentum:g}, {buffers}": Setting(
            task, "slowmo", workers, 12, momentum, "auto" if buffers == auto else buffers
        )
        for momentum in (0.0, beta)
        for buffers in ("reset", "maintain", "average")
    }
    return Table(f"{task}: the buffers' strategy, m = {workers}, τ = 12", rows)


TABLES = {
    "fashion.methods": _methods("fashion", 16, "Local SGD"),
    "fashion.workers": _workers("fashion", WORKERS),
    "fashion.periods": _periods("fashion", 16, (0.0, 0.4, 0.8)),
    "fashion.buffers": _buffers("fashion", 16, "reset", 0.4),
    "language.methods": _methods("language", 8, "Local AdamW"),
    "language.periods": _periods("language", 8, (0.0, 0.4)),
    "language.buffers": _buffers("language", 8, "maintain", 0.4),
    "translation.methods": _methods("translation", 8, "Local Adam", all_of_them=False),
}
