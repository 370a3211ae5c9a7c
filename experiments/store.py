"""Every run that was made: a line of JSON each, in one file a task, which is committed."""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.settings import Run, Setting


class StoreError(Exception):
    """The kept runs cannot be used; the sentence says why."""


RESULTS = Path(__file__).parent / "results"


class Store:
    """The runs of all tasks.

    Args:
        folder: where the files are.

    Raises:
        StoreError: a line of a file is not a run.
    """

    def __init__(self, folder: Path = RESULTS) -> None:
        self._folder = folder
        self._runs: dict[Run, dict[str, Any]] = {}
        for file in sorted(folder.glob("*.jsonl")):
            for number, line in enumerate(file.read_text().splitlines(), 1):
                try:
                    kept = json.loads(line)
                    run = Run(Setting(**kept["setting"]), kept["lr"], kept["seed"])
                except (ValueError, TypeError, KeyError) as error:
                    raise StoreError(
                        f"line {number} of {file} is not a run ({error}): delete it, and the run "
                        "is made again"
                    ) from None
                self._runs[run] = kept

    def __contains__(self, run: Run) -> bool:
        return run in self._runs

    def __getitem__(self, run: Run) -> dict[str, Any]:
        return self._runs[run]

    def of(self, setting: Setting) -> Iterator[Run]:
        """The runs with this setting."""
        return (run for run in self._runs if run.setting == setting)

    def check(self, task: str, about: Mapping[str, Any]) -> None:
        """See that the kept runs of a task were made as new ones will be.

        Args:
            task: its name.
            about: what a new run would say of itself.

        Raises:
            StoreError: they were not.
        """
        for run, kept in self._runs.items():
            for name, value in about.items():
                if run.setting.task == task and kept[name] != value:
                    raise StoreError(
                        f"the runs in {self._folder / task}.jsonl were made with "
                        f"{name} {kept[name]}, new ones would be with {value}: move the file away "
                        "to make all of them again"
                    )

    def add(self, run: Run, result: dict[str, Any]) -> None:
        """Keep a run, on the disk first."""
        kept = {"setting": dataclasses.asdict(run.setting), "lr": run.lr, "seed": run.seed} | result
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"{run.setting.task}.jsonl").open("a") as file:
            file.write(json.dumps(kept) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._runs[run] = kept
