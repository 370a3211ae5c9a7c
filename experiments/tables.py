"""The tables: which trainings each of them needs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.settings import DILOCO_MOMENTUM, Setting
from slowmo_hvd.core.config import SlowMoConfig

SEEDS = 5
BETAS = (0.2, 0.4, 0.6, 0.8)
PERIODS = (4, 12, 48, 120)
WORKERS = (2, 4, 8, 16, 32)


class Column(NamedTuple):
    """A figure of a run.

    Attributes:
        figure: its name.
        epoch: after which it is taken, from 1; the last if None. Or "best": the lowest of all.
    """

    figure: str
    epoch: int | str | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: what it shows.
        rows: its settings, by what each row is called.
        columns: its figures; those that the runs have, if None.
        plot: how it is drawn: "curves" of the losses on the way, two "short curves" of the
            training loss alone, lines "by slow_momentum" or "by sync_period" of the last ones, or
            not at all.
    """

    title: str
    rows: Mapping[str, Setting]
    columns: Mapping[str, Column] | None = None
    plot: str = ""


def _methods(
    task: str, workers: int, local: str, buffers: str, rising: int, *, all_of_them: bool = True
) -> Table:
    """Gradient averaging, local steps, and what is built on them.

    Args:
        task: its name.
        workers: m.
        local: what the local steps without slow momentum are called.
        buffers: the strategy.
        rising: a tenth of the windows, twice those in which the learning rate rises.
        all_of_them: whether the methods of others are among them.
    """

    def setting(method: str, slow_momentum: float = 0.0, sync_period: int = 12) -> Setting:
        return Setting(task, method, workers, sync_period, slow_momentum, buffers)

    averaging = Setting(task, "averaging", workers, 1)
    rows = {"gradient averaging": averaging, local: setting("slowmo")}
    rows |= {f"SlowMo, β = {beta}": setting("slowmo", beta) for beta in BETAS}
    risen = Setting(task, "slowmo", workers, 12, 0.4, buffers, momentum_warmup=rising)
    rows[f"SlowMo, β rising to 0.4 over {rising} windows"] = risen
    if all_of_them:
        lone = Setting(task, "snoo", 1, 12, DILOCO_MOMENTUM, buffers, batch_factor=workers)
        rows |= {
            "DiLoCo's outer step": setting("diloco", DILOCO_MOMENTUM),
            f"post-local, {local}": setting("post-local"),
            f"{local}, QSR": setting("qsr", sync_period=4),
            "BMUF, β = 0.4: u not divided by γ": setting("bmuf", 0.4),
            "SNOO: one worker, m times the batch": lone,
        }
    title = f"{task}: methods, m = {workers}, τ = 12, {buffers}"
    return Table(title, rows, plot="curves")


def _periods(task: str, workers: int, betas: Sequence[float]) -> Table:
    rows = {
        f"τ = {period}, β = {beta:g}": Setting(task, "slowmo", workers, period, beta)
        for period in PERIODS
        for beta in betas
    }
    return Table(f"{task}: the effect of τ, m = {workers}, maintain", rows, plot="by sync_period")


def _workers(task: str, counts: Sequence[int]) -> Table:
    rows = {
        f"m = {workers}, β = {beta:g}": Setting(task, "slowmo", workers, 12, beta)
        for workers in counts
        for beta in (0.0, *BETAS)
    }
    title = f"{task}: the effect of β by number of workers, τ = 12, maintain"
    return Table(title, rows, plot="by slow_momentum")


def _buffers(task: str, places: Sequence[tuple[int, int]]) -> Table:
    """The strategies with and without slow momentum, at the first of these places all three.

    Args:
        task: its name.
        places: m and τ.
    """
    rows = {}
    for workers, period in places:
        first = (workers, period) == places[0]
        for beta in (0.0, 0.4) if first else (0.4,):
            for buffers in ("reset", "maintain", "average") if first else ("reset", "maintain"):
                setting = Setting(task, "slowmo", workers, period, beta, buffers)
                rows[f"m = {workers}, τ = {period}, β = {beta:g}, {buffers}"] = setting
    return Table(f"{task}: the buffers' strategy", rows)


def _decay(methods: Table, epoch: int) -> Table:
    """What becomes of the training loss where γ falls to a tenth within this epoch."""
    names = ("Local SGD", "SlowMo, β = 0.4", "BMUF, β = 0.4: u not divided by γ")
    columns = {
        f"training loss after epoch {at}": Column("training loss", at)
        for at in (epoch - 1, epoch, epoch + 1)
    }
    columns["at the end"] = Column("training loss")
    rows = {name: methods.rows[name] for name in names}
    return Table("fashion: where the learning rate falls, m = 16, τ = 12", rows, columns)


def _in_short(task: str, workers: int, local: str) -> Table:
    """What is sent and what is learnt, with the defaults of the package."""
    beta = SlowMoConfig().slow_momentum
    assert not callable(beta)
    rows = {
        "gradient averaging": Setting(task, "averaging", workers, 1),
        local: Setting(task, "slowmo", workers, 12),
        f"SlowMo, β = {beta:g}": Setting(task, "slowmo", workers, 12, beta),
    }
    return Table(f"{task}: in short, m = {workers}, τ = 12, maintain", rows, plot="short curves")


_FASHION = _methods("fashion", 16, "Local SGD", "reset", 13)
TABLES = {
    "fashion.in_short": _in_short("fashion", 16, "Local SGD"),
    "fashion.methods": _FASHION,
    "fashion.decay": _decay(_FASHION, 8),
    "fashion.workers": _workers("fashion", WORKERS),
    "fashion.periods": _periods("fashion", 16, (0.0, 0.4)),
    "fashion.buffers": _buffers("fashion", ((16, 12), (16, 4), (16, 48), (4, 12))),
    "language.methods": _methods("language", 8, "Local AdamW", "maintain", 11),
    "language.buffers": _buffers("language", ((8, 12),)),
    "translation.methods": _methods(
        "translation", 8, "Local Adam", "maintain", 23, all_of_them=False
    ),
}
