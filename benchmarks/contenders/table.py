"""A run as Markdown."""

from benchmarks.contenders.figures import Cell, Figures, Spread, spread, steps_to
from benchmarks.contenders.registry import CONTENDERS, KERAS_LOCAL, LOCAL
from benchmarks.contenders.store import final_loss
from benchmarks.contenders.works import work

NOTHING = "–"


def markdown(figures: Figures) -> str:
    """All tables, and what failed."""
    parts = ["# Contenders", _legend()]
    for name, ranks in figures.works("speed"):
        parts += [f"## Training, {name}, {ranks} ranks", _speed(figures, name, ranks)]
    for name, ranks in figures.works("sync"):
        parts += [f"## The sync alone, {name}, {ranks} ranks", _sync(figures, name, ranks)]
    if figures.learnt():
        parts += ["## Learning", _learning(figures)]
    if figures.failures:
        parts += ["## What did not run", _failures(figures)]
    return "\n\n".join(parts) + "\n"


def _legend() -> str:
    return (
        "Medians over the repetitions; in brackets the lowest and the highest. Bytes are those at "
        "a worker's interface, with headers. Memory is the processes' high-water mark less that "
        "of a worker by itself, in units of the parameters."
    )


def _rows(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _rates(figures: Figures, measure: str, name: str, ranks: int) -> list[str]:
    cells = figures.cells(measure)
    return list(dict.fromkeys(cell[2] for cell in cells if cell[:2] == (name, ranks)))


def _contenders(figures: Figures, measure: str, name: str, ranks: int) -> list[str]:
    found = {cell[3] for cell in figures.cells(measure) if cell[:2] == (name, ranks)}
    return [contender for contender in CONTENDERS if contender in found]


def _speed(figures: Figures, name: str, ranks: int) -> str:
    rates = _rates(figures, "speed", name, ranks)
    header = ["contender"]
    for rate in rates:
        header += [f"throughput over local, {rate}", f"s a step, {rate}"]
    header += ["MB a step and worker", "extra memory"]
    rows = []
    for contender in _contenders(figures, "speed", name, ranks):
        cells: list[Cell] = [(name, ranks, rate, contender) for rate in rates]
        row = [contender]
        for cell in cells:
            row += [_text(figures.throughput(cell)), _text(figures.step_seconds(cell))]
        last = next(cell for cell in reversed(cells) if figures.step_seconds(cell))
        is_alone = contender in (LOCAL, KERAS_LOCAL)
        row += [
            _text(figures.step_bytes(last), 1e6),
            NOTHING if is_alone else _text(figures.extra_memory(last)),
        ]
        rows.append(row)
    return _rows(header, rows)


def _sync(figures: Figures, name: str, ranks: int) -> str:
    rates = _rates(figures, "sync", name, ranks)
    header = ["contender"]
    for rate in rates:
        header += [f"over raw, {rate}", f"s, {rate}", f"added to the steps over raw, {rate}"]
    header += ["MB a sync and worker"]
    rows = []
    for contender in _contenders(figures, "sync", name, ranks):
        if contender in (LOCAL, KERAS_LOCAL):
            continue
        row = [contender]
        cells: list[Cell] = [(name, ranks, rate, contender) for rate in rates]
        for cell in cells:
            ratios = figures.sync_ratio(cell), figures.stall_ratio(cell)
            row += [_text(ratios[0]), _text(figures.sync_seconds(cell)), _text(ratios[1])]
        last = next(cell for cell in reversed(cells) if figures.sync_bytes(cell))
        rows.append([*row, _text(figures.sync_bytes(last), 1e6)])
    return _rows(header, rows)


def _learning(figures: Figures) -> str:
    rates = list(dict.fromkeys(cell[2] for cell in figures.cells("speed")))
    header = ["work", "ranks", "contender", "lr", "final loss", "steps to the target"]
    header += [f"s to the target, {rate}" for rate in rates]
    rows = []
    for (name, ranks, contender), records in figures.learnt().items():
        target = work(name).target
        reached = [steps_to(record, target) for record in records]
        steps = spread([step for step in reached if step is not None])
        row = [f"{name}, target {target:g}", str(ranks), contender]
        row += [f"{records[0]['job']['lr']:g}", _text(spread(map(final_loss, records)), digits=3)]
        if steps is None or None in reached:
            row += ["not reached" if steps is None else "not always reached"]
            row += [NOTHING] * len(rates)
        else:
            row += [f"{steps.median:.0f}"]
            for rate in rates:
                seconds = figures.target_seconds((name, ranks, rate, contender), steps.median)
                row += [NOTHING if seconds is None else f"{seconds:.0f}"]
        rows.append(row)
    return _rows(header, rows)


def _failures(figures: Figures) -> str:
    lines = []
    for (contender, says), places in figures.failures.items():
        rest = f" and {len(places) - 1} more" if len(places) > 1 else ""
        lines.append(f"- {contender} ({CONTENDERS[contender].says}): `{says}` ({places[0]}{rest})")
    return "\n".join(lines)


def _text(figure: Spread | None, unit: float = 1.0, digits: int = 2) -> str:
    if figure is None:
        return NOTHING
    three = (figure.median, figure.low, figure.high)
    median, low, high = (_number(x / unit, digits) for x in three)
    return median if figure.count == 1 else f"{median} ({low} to {high})"


def _number(value: float, digits: int) -> str:
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.{digits}f}"
