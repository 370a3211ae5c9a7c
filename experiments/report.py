"""The tables as Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.settings import Run
from experiments.store import Store
from experiments.tables import Column, Table
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
    columns = columns_of(table, store, rows)
    lines = [
        f"| {table.title} | lr | {' | '.join(columns)} |",
        f"|{'---|' * (len(columns) + 2)}",
    ]
    for name, runs in rows.items():
        if runs:
            cells = [mean_and_deviation(values(store, runs, of)) for of in columns.values()]
            lines.append(f"| {name} | {runs[0].lr:g} | {' | '.join(cells)} |")
        else:
            lines.append(f"| {name} | not yet |{' |' * len(columns)}")
    return "\n".join(lines) + "\n"


def columns_of(
    table: Table, store: Store, rows: Mapping[str, Sequence[Run]]
) -> Mapping[str, Column]:
    """The table's columns."""
    if table.columns is not None:
        return table.columns
    result = next((store[runs[0]] for runs in rows.values() if runs), None)
    if result is None:
        return {}
    looked = [name for name in result["looks"][-1] if name not in ("step", "syncs")]
    columns = {f"best {looked[0]}": Column(looked[0], "best")}
    return columns | {name: Column(name) for name in [*looked[1:], *result["test"]]}


def values(store: Store, runs: Sequence[Run], column: Column) -> list[float]:
    """A figure of each of these runs."""
    return [_value(store[run], column) for run in runs]


def _value(result: Mapping[str, Any], column: Column) -> float:
    looks = result["looks"]
    if column.epoch == "best":
        return float(min(look[column.figure] for look in looks))
    at = looks[-1] if column.epoch is None else looks[int(column.epoch) - 1]
    return float((at | result["test"])[column.figure])


def mean_and_deviation(values: Sequence[float]) -> str:
    """Over the seeds, with the sample's deviation."""
    digits = 2 if max(map(abs, values)) >= 10 else 3
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def into(page: str, tables: Mapping[str, str]) -> str:
    """A page with tables in the places that are marked for them: ``<!-- table NAME -->``.

    Raises:
        ValueError: it has no place for a table.
    """
    for name, table in tables.items():
        begin, end = f"<!-- table {name} -->\n", "<!-- end -->"
        before, found, after = page.partition(begin)
        _, closed, rest = after.partition(end)
        if not found or not closed:
            raise ValueError(f"the page has no place for the table {name}: {begin}{end}")
        page = f"{before}{begin}\n{table}\n{end}{rest}"
    return page
