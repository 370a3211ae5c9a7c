"""A run as pictures, which matplotlib draws."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.contenders.figures import Cell, Figures, Spread, curve
from benchmarks.contenders.registry import CONTENDERS, KERAS_LOCAL, LOCAL
from benchmarks.contenders.works import work

_ALONE = (LOCAL, KERAS_LOCAL)


def draw(figures: Figures, folder: Path) -> list[Path]:
    """Draw what there is, into a folder; return the files."""
    import matplotlib

    matplotlib.use("Agg")
    drawn = [
        _bars(figures, "speed", figures.throughput, "throughput over local-only", folder),
        _bars(figures, "sync", figures.sync_ratio, "sync over a raw allreduce", folder),
        _losses(figures, folder),
        _losses_over_time(figures, folder),
        _over_ranks(figures, folder),
        _over_sizes(figures, folder),
    ]
    return [path for path in drawn if path is not None]


def _bars(
    figures: Figures,
    measure: str,
    figure_of: Callable[[Cell], Spread | None],
    label: str,
    folder: Path,
) -> Path | None:
    """One panel for each work and number of ranks, one bar for each contender and rate."""
    places = figures.works(measure)
    cells = [cell for cell in figures.cells(measure) if cell[3] not in _ALONE]
    if not cells:
        return None
    rates = list(dict.fromkeys(cell[2] for cell in cells))
    figure, axes = _panels(len(places))
    for axis, (name, ranks) in zip(axes, places, strict=True):
        here = [cell for cell in cells if cell[:2] == (name, ranks)]
        contenders = list(dict.fromkeys(cell[3] for cell in here))
        for place, rate in enumerate(rates):
            for number, contender in enumerate(contenders):
                found = figure_of((name, ranks, rate, contender))
                if found is not None:
                    _bar(axis, number + place / (len(rates) + 1), found, f"C{place}", len(rates))
        axis.set_yticks(range(len(contenders)), contenders)
        axis.invert_yaxis()
        axis.axvline(1, color="grey", linewidth=0.8)
        axis.set_title(f"{name}, {ranks} ranks")
        axis.set_xlabel(label)
    for place, rate in enumerate(rates):
        axes[0].barh([0], [0], color=f"C{place}", label=rate)
    axes[0].legend()
    return _save(figure, folder / f"{measure}.png")


def _bar(axis: Any, where: float, found: Spread, color: str, rates: int) -> None:
    around = [[max(found.median - found.low, 0)], [max(found.high - found.median, 0)]]
    height = 1 / (rates + 1)
    axis.barh([where], [found.median], height, xerr=around, color=color, ecolor="black")


def _losses(figures: Figures, folder: Path) -> Path | None:
    learnt = figures.learnt()
    places = list(dict.fromkeys(key[:2] for key in learnt))
    if not places:
        return None
    figure, axes = _panels(len(places))
    for axis, (name, ranks) in zip(axes, places, strict=True):
        for key, records in learnt.items():
            if key[:2] == (name, ranks):
                points = curve(records[0])
                label = f"{key[2]}, lr {records[0]['job']['lr']:g}"
                axis.plot([p[0] for p in points], [p[2] for p in points], label=label)
        _label_losses(axis, name, f"{name}, {ranks} ranks", "step")
    return _save(figure, folder / "losses.png")


def _losses_over_time(figures: Figures, folder: Path) -> Path | None:
    """The same by the seconds that a step was measured to take at each rate."""
    learnt = figures.learnt()
    places: dict[tuple[str, int, str], dict[str, float]] = {}
    for name, ranks, rate, contender in figures.cells("speed"):
        seconds = figures.step_seconds((name, ranks, rate, contender))
        if seconds is not None and (name, ranks, contender) in learnt:
            places.setdefault((name, ranks, rate), {})[contender] = seconds.median
    if not places:
        return None
    figure, axes = _panels(len(places))
    for axis, ((name, ranks, rate), step_seconds) in zip(axes, places.items(), strict=True):
        for contender, seconds in step_seconds.items():
            points = curve(learnt[name, ranks, contender][0])[1:]  # all begin alike
            axis.plot([p[0] * seconds for p in points], [p[2] for p in points], label=contender)
        axis.set_xscale("log")
        _label_losses(axis, name, f"{name}, {ranks} ranks, {rate}", "seconds")
    return _save(figure, folder / "times.png")


def _label_losses(axis: Any, name: str, title: str, over: str) -> None:
    """Say what is seen of a work's losses, and where its target is."""
    axis.axhline(work(name).target, color="grey", linewidth=0.8)
    axis.set_title(title)
    axis.set_xlabel(over)
    axis.set_ylabel("mean loss on held-out batches")
    axis.legend(fontsize="x-small")


def _over_ranks(figures: Figures, folder: Path) -> Path | None:
    """Throughput against the number of ranks."""
    cells = [cell for cell in figures.cells("speed") if cell[3] not in _ALONE]
    places = list(dict.fromkeys((cell[0], cell[2]) for cell in cells))
    if len({cell[1] for cell in cells}) < 2:
        return None
    figure, axes = _panels(len(places))
    for axis, (name, rate) in zip(axes, places, strict=True):
        here = [cell for cell in cells if (cell[0], cell[2]) == (name, rate)]
        _lines(axis, here, lambda cell: cell[1], figures.throughput)
        axis.set_title(f"{name}, {rate}")
        axis.set_xlabel("ranks")
        axis.set_ylabel("throughput over local-only")
    return _save(figure, folder / "ranks.png")


def _over_sizes(figures: Figures, folder: Path) -> Path | None:
    """The sync over a raw allreduce, against the number of parameters."""
    cells = [cell for cell in figures.cells("sync") if cell[3] not in _ALONE]
    places = list(dict.fromkeys(cell[1:3] for cell in cells))
    if len({cell[0] for cell in cells}) < 2:
        return None
    figure, axes = _panels(len(places))
    for axis, place in zip(axes, places, strict=True):
        here = [cell for cell in cells if cell[1:3] == place]
        _lines(axis, here, lambda cell: int(re.sub(r"\D", "", cell[0])), figures.sync_ratio)
        axis.set_xscale("log")
        axis.set_title(f"{place[0]} ranks, {place[1]}")
        axis.set_xlabel("million parameters")
        axis.set_ylabel("sync over a raw allreduce")
    return _save(figure, folder / "scale.png")


def _lines(
    axis: Any,
    cells: list[Cell],
    where: Callable[[Cell], int],
    figure_of: Callable[[Cell], Spread | None],
) -> None:
    for contender in (name for name in CONTENDERS if any(cell[3] == name for cell in cells)):
        own = sorted((cell for cell in cells if cell[3] == contender), key=where)
        points = [(where(cell), found.median) for cell in own if (found := figure_of(cell))]
        axis.plot([p[0] for p in points], [p[1] for p in points], marker=".", label=contender)
    axis.legend(fontsize="x-small")


def _panels(count: int) -> tuple[Any, list[Any]]:
    from matplotlib import pyplot

    columns = min(count, 2)
    rows = -(-count // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(6.5 * columns, 5.5 * rows), squeeze=False
    )
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return path
