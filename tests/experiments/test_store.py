"""Every run is a line on the disk at once; a line that is none, or of other data, is told."""

from pathlib import Path
from typing import Any

import pytest

from experiments.settings import Run, Setting
from experiments.store import Store, StoreError

RUN = Run(Setting("fashion", "slowmo", 4, 12, 0.4), 0.1, 2)
RESULT: dict[str, Any] = {"looks": [], "data": "ab12", "epochs": 3}


def test_what_is_added_is_there_in_another_process(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(RUN, RESULT)
    again = Store(tmp_path)
    assert RUN in again
    assert again[RUN]["data"] == "ab12"
    assert list(again.of(RUN.setting)) == [RUN]
    assert Run(RUN.setting, 0.1, 3) not in again


def test_a_line_that_was_cut_off_is_named(tmp_path: Path) -> None:
    Store(tmp_path).add(RUN, RESULT)
    file = tmp_path / "fashion.jsonl"
    file.write_text(file.read_text() + file.read_text()[:40])
    with pytest.raises(StoreError, match=r"line 2 of .*fashion.jsonl is not a run"):
        Store(tmp_path)


def test_runs_of_another_recipe_or_other_data_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(RUN, RESULT)
    store.check("fashion", {"data": "ab12", "epochs": 3})
    store.check("language", {"data": "other"})
    with pytest.raises(StoreError, match="made with epochs 3, new ones would be with 4"):
        store.check("fashion", {"data": "ab12", "epochs": 4})


def test_a_method_that_there_is_not_is_no_setting() -> None:
    with pytest.raises(ValueError, match="there is no method 'adam': averaging, slowmo"):
        Setting("fashion", "adam")
