"""How the suite runs on several ranks: ``horovodrun -np 2 pytest``, and -np 3 and 4 for some.

- A test marked ``ranks(2, 3)`` runs on all ranks at once, where there are 2 or 3 of them. Such
  tests come first, in the same order on every rank. A failure on one rank ends that rank's run
  at once, since the others may wait for it in a collective; horovodrun then ends those.
- Every other test runs once, on the rank it is dealt to, where there are 1 or 2 ranks.
- A test that takes longer than its ``limit`` is taken for hanging: the rank says so, shows where
  every thread stands, and dies with all its children, which makes horovodrun end the rest.
"""

import faulthandler
import os
import threading
from collections.abc import Generator
from typing import TextIO

import horovod.torch as hvd
import pytest
import torch
from launch import kill_all

_STDERR = pytest.StashKey[TextIO]()
LIMIT = 50  # seconds; with the time to notice and to end the others, a hang lasts under a minute


def pytest_configure(config: pytest.Config) -> None:
    # pytest redirects file descriptor 2 while a test runs; a last word must get past that.
    config.stash[_STDERR] = os.fdopen(os.dup(2), "w")
    hvd.init()  # once in a process: a second init after a failed test can abort it
    torch.set_num_threads(1)  # the ranks share the cores


def pytest_report_header() -> str:
    return f"rank {hvd.rank()} of {hvd.size()}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    together = [item for item in items if _is_shared(item)]
    once = [item for item in items if not _is_shared(item)] if hvd.size() <= 2 else []
    kept = [item for item in together if hvd.size() in item.get_closest_marker("ranks").args]
    kept += once[hvd.rank() :: hvd.size()]
    chosen = {id(item) for item in kept}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in chosen])
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    marker = item.get_closest_marker("limit")
    limit = marker.args[0] if marker else LIMIT
    output = item.config.stash[_STDERR]
    timer = threading.Timer(limit, _die_hanging, args=(item.nodeid, limit, output))
    timer.daemon = True
    timer.start()
    try:
        return (yield)
    finally:
        timer.cancel()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, object]:
    report = yield
    if report.failed and _is_shared(item) and hvd.size() > 1:
        item.session.shouldfail = f"{item.nodeid} failed on rank {hvd.rank()}"
    return report


def pytest_sessionfinish() -> None:
    kill_all()


def _is_shared(item: pytest.Item) -> bool:
    return item.get_closest_marker("ranks") is not None


def _die_hanging(test: str, limit: float, output: TextIO) -> None:
    print(f"\nrank {hvd.rank()} hung for {limit} s in {test}", file=output, flush=True)
    faulthandler.dump_traceback(file=output, all_threads=True)
    kill_all()
    os._exit(1)
