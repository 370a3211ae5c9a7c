"""The tables say what the runs say, and those in docs/experiments.md what the kept runs say."""

from pathlib import Path

import pytest
from launch import ROOT

from experiments.report import into, markdown
from experiments.settings import Run, Setting
from experiments.store import Store
from experiments.tables import SEEDS, TABLES, Column, Table

LOCAL, SLOWMO = Setting("fashion"), Setting("fashion", slow_momentum=0.4)


def store_with(folder: Path, losses: dict[tuple[Setting, float, int], float]) -> Store:
    store = Store(folder)
    for (setting, lr, seed), loss in losses.items():
        looks = [
            {"step": 5, "syncs": 1, "training loss": loss - 2, "validation loss": loss},
            {"step": 9, "syncs": 2, "training loss": loss - 1, "validation loss": loss},
        ]
        store.add(
            Run(setting, lr, seed), {"diverged": False, "looks": looks, "test": {"BLEU": 30 + loss}}
        )
    return store


def test_a_row_is_the_mean_and_deviation_at_the_learning_rate_that_validation_chose(
    tmp_path: Path,
) -> None:
    losses = {(LOCAL, lr, 0): loss for lr, loss in ((0.05, 5.0), (0.1, 4.0), (0.2, 6.0))}
    losses |= {(LOCAL, 0.1, 1): 6.0, (SLOWMO, 0.1, 0): 4.0}
    store = store_with(tmp_path, losses)
    table = Table("title", {"Local SGD": LOCAL, "SlowMo": SLOWMO})
    assert markdown(table, store, 2).splitlines() == [
        "| title | lr | best training loss | validation loss | BLEU |",
        "|---|---|---|---|---|",
        "| Local SGD | 0.1 | 3.000 ± 1.414 | 5.000 ± 1.414 | 35.00 ± 1.41 |",
        "| SlowMo | not yet | | | |",
    ]
    columns = {"early": Column("training loss", 1), "late": Column("training loss")}
    early = Table("title", {"Local SGD": LOCAL}, columns)
    assert markdown(early, store, 1).splitlines()[2] == (
        "| Local SGD | 0.1 | 2.000 ± 0.000 | 3.000 ± 0.000 |"
    )


def test_a_table_goes_into_its_place_in_a_page() -> None:
    page = "one\n<!-- table a -->\nold\n<!-- end -->\ntwo\n<!-- table b -->\n<!-- end -->\n"
    assert into(page, {"a": "new\n"}) == (
        "one\n<!-- table a -->\n\nnew\n\n<!-- end -->\ntwo\n<!-- table b -->\n<!-- end -->\n"
    )
    with pytest.raises(ValueError, match="the page has no place for the table c"):
        into(page, {"c": ""})


def test_the_documentation_shows_the_kept_runs() -> None:
    page, store = (ROOT / "docs/experiments.md").read_text(), Store()
    tables = {name: markdown(table, store, SEEDS) for name, table in TABLES.items()}
    assert into(page, tables) == page, "run python -m experiments --show --docs"
