"""The tables as Markdown."""

import statistics
from collections.abc import Sequence

from experiments.settings import Run
from experiments.store import Store
from experiments.tables import Table
from experiments.tuning import chosen_rate


def finished(table: Table, store: Store, seeds: int) -> dict[str, list[Run]]:
    """The runs of each row at its chosen learning rate; none where not all seeds are there yet."""
    rows: dict[str, list[Run]] = {}
    for name, setting in table.rows.items():
        rate = chosen_rate(setting, store)
        runs = [Run(setting, rate, seed) for seed in range(seeds)] if rate else []
        rows[name] = runs if all(run in store for run in runs) else []
    return rows


def markdown(table: Table, store: Store, seeds: int) -> str:
    """The table: for each row the learning rate, and the mean and deviation of each figure."""
    rows = finished(table, store, seeds)
    columns = next((columns_of(store, runs) for runs in rows.values() if runs), [])
    lines = [
        f"### {table.title}",
        "",
        f"| | lr | {' | '.join(columns)} |",
        f"|{'---|' * (len(columns) + 2)}",
    ]
    for name, runs in rows.items():
        cells = [mean_and_deviation(store, runs, column) for column in columns] if runs else []
        rate = f"{runs[0].lr:g}" if runs else "not yet"
        lines.append(f"| {name} | {rate} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def columns_of(store: Store, runs: Sequence[Run]) -> list[str]:
    """The figures that these runs have."""
    result = store[runs[0]]
    looked = [name for name in result["looks"][-1] if name not in ("step", "syncs")]
    return [f"best {looked[0]}", *looked[1:], *result["test"]]


def values_of(store: Store, runs: Sequence[Run], column: str) -> list[float]:
    """A figure of each of these runs: at the end, or if so named the lowest of all looks."""
    results = [store[run] for run in runs]
    if column.startswith("best "):
        name = column.removeprefix("best ")
        return [min(look[name] for look in result["looks"]) for result in results]
    return [(result["looks"][-1] | result["test"])[column] for result in results]


def mean_and_deviation(store: Store, runs: Sequence[Run], column: str) -> str:
    """Of a figure over the seeds."""
    values = values_of(store, runs, column)
    digits = 2 if max(map(abs, values)) >= 10 else 4
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"
