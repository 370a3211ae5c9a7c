"""The tables as pictures."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from experiments.report import columns_of, finished, values
from experiments.settings import Run
from experiments.store import Store
from experiments.tables import Table
from experiments.tasks import TASKS
from slowmo_hvd.plan.cost import Ring

RATE, LATENCY = 100e6, 50e-6  # bits a second and seconds: the links of the third panel
FLOAT = 4  # bytes of a number on the wire


def draw(table: Table, store: Store, seeds: int, file: Path) -> bool:
    """Draw what there is of curves, or a table that is whole; return whether there is a plot."""
    found = finished(table, store, seeds)
    rows = {name: runs for name, runs in found.items() if runs}
    if not table.plot or not rows or (len(rows) < len(found) and "curves" not in table.plot):
        return False
    if table.plot == "curves":
        figure = _curves(rows, store)
    elif table.plot == "short curves":
        figure = _short_curves(rows, store)
    else:
        figure = _lines(table, rows, store, x=table.plot.removeprefix("by "))
    figure.suptitle(table.title)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return True


def _curves(rows: Mapping[str, Sequence[Run]], store: Store) -> Any:
    """The mean training and validation losses over steps, bytes and seconds."""
    figure, panels = pyplot.subplots(2, 3, figsize=(16, 8), sharey="row")
    for index, (name, runs) in enumerate(rows.items()):
        setting, results = runs[0].setting, [store[run] for run in runs]
        looks = list(zip(*(result["looks"] for result in results), strict=True))
        # A line needs two points; a task whose losses are measured once has one.
        mark = "-" if len(looks) > 1 else "o"
        color = f"C{index}" if index < 10 else "0.3"
        samples = setting.workers * setting.batch_factor
        steps = [at[0]["step"] * samples for at in looks]
        syncs = [at[0]["syncs"] for at in looks]
        nbytes = FLOAT * results[0]["parameters"]
        step = TASKS[setting.task].step_seconds * setting.batch_factor
        wire = Ring(setting.workers, RATE, LATENCY).seconds(nbytes, FLOAT)
        seconds = [
            at[0]["step"] * step + done * wire for at, done in zip(looks, syncs, strict=True)
        ]
        sent = [done * nbytes / 1e6 for done in syncs]
        for row, loss in zip(panels, ("training loss", "validation loss"), strict=True):
            means = [statistics.mean(look[loss] for look in at) for at in looks]
            for axes, x in zip(row, (steps, sent, seconds), strict=True):
                if setting.workers > 1 or x is not sent:
                    axes.plot(x, means, mark, label=name, color=color)
            row[0].set_ylabel(loss)
    labels = (
        "batches of one worker, over all workers",
        "MB that a worker hands to allreduce",
        f"seconds, on links of {RATE / 1e6:g} Mbit/s and {LATENCY * 1e6:g} µs",
    )
    for axes, label in zip(panels[1], labels, strict=True):
        axes.set_xlabel(label)
    for axes in panels.flat:
        axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both")
    for axes in panels[:, 1]:
        axes.set_xscale("log")
        axes.tick_params(axis="x", which="minor", labelsize="x-small", rotation=45)
    panels[0, 2].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return figure


def _short_curves(rows: Mapping[str, Sequence[Run]], store: Store) -> Any:
    """The training losses over steps and bytes, and in the legend what the test gave."""
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for name, runs in rows.items():
        results = [store[run] for run in runs]
        looks = list(zip(*(result["looks"] for result in results), strict=True))
        means = [statistics.mean(look["training loss"] for look in at) for at in looks]
        size = FLOAT * results[0]["parameters"] / 1e6
        *_, (figure_of_test, _) = results[0]["test"].items()
        tested = statistics.mean(result["test"][figure_of_test] for result in results)
        label = f"{name}: {figure_of_test} {tested:.1f}"
        panels[0].plot([at[0]["step"] for at in looks], means, label=label)
        panels[1].plot([at[0]["syncs"] * size for at in looks], means, label=label)
    panels[0].set(xlabel="steps of each worker", ylabel="training loss", yscale="log")
    panels[1].set(xlabel="MB that a worker hands to allreduce", xscale="log")
    panels[0].legend(fontsize="small")
    for axes in panels:
        axes.grid(alpha=0.3, which="both")
    return figure


def _lines(table: Table, rows: Mapping[str, Sequence[Run]], store: Store, x: str) -> Any:
    """The first and the last figure of the table over β or τ, a line for what else differs."""
    other = "workers" if x == "slow_momentum" else "slow_momentum"
    symbols = {"workers": "m", "slow_momentum": "β", "sync_period": "τ"}
    columns = list(columns_of(table, store, rows).items())
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.5))
    for axes, (name, column) in zip(panels, (columns[0], columns[-1]), strict=True):
        lines: dict[float, list[tuple[float, float, float]]] = {}
        for runs in rows.values():
            found, setting = values(store, runs, column), runs[0].setting
            deviation = statistics.stdev(found) if len(found) > 1 else 0.0
            point = (getattr(setting, x), statistics.mean(found), deviation)
            lines.setdefault(getattr(setting, other), []).append(point)
        for value, points in sorted(lines.items()):
            at, means, deviations = zip(*sorted(points), strict=True)
            label = f"{symbols[other]} = {value:g}"
            axes.errorbar(at, means, deviations, fmt="o-", capsize=3, label=label)
        axes.set(xlabel=symbols[x], title=name, xscale="log" if x == "sync_period" else "linear")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure
