"""How the suite runs on several ranks: ``horovodrun -np 2 pytest``, and -np 3 and 4 for some.

- ``--framework tensorflow`` runs tests/tensorflow, and nothing else; ``--framework torch``, the
  default, runs all the rest. Horovod for both does not go into one process.
- A test marked ``ranks(2, 3)`` runs on all ranks at once, where there are 2 or 3 of them. Such
  tests come first, in the same order on every rank. A failure on one rank ends that rank's run
  at once, since the others may wait for it in a collective; horovodrun then ends those.
- Every other test runs once, on the rank it is dealt to, where there are 1 or 2 ranks. A rank that
  is dealt none passes.
- A test in which nothing makes progress is taken for hanging (see progress.py): the rank says so,
  shows where every thread stands, and dies with all its children, which makes horovodrun end the
  rest. A test that waits on purpose says how long it may be idle: ``limit(100)``.
- Of a test marked ``pairwise`` only so many cases run that each pair of its settings is met, and
  one marked ``only_all_cases`` not at all (``only_all_cases("tensorflow")``: not in TensorFlow's
  session), unless with ``--all-cases``, which ``make test-all`` gives. ``pairwise("a", "b")`` says
  that these two meet in another test. The number of ranks is a setting too, named "ranks":
  where 2 are among those that the test is for, all pairs are met with 2, and with the others each
  setting once.
"""

import faulthandler
import os
import signal
import threading
from collections.abc import Generator, Hashable
from pathlib import Path
from typing import TextIO

import framework
import pytest
from launch import kill_all
from pairwise import choose
from progress import FAR, IDLE, Watch

_STDERR = pytest.StashKey[TextIO]()
_NONE_IS_FINE = pytest.StashKey[bool]()
_ALL_RANKS = pytest.StashKey[list[int]]()  # their processes
_LAST_SHARED = pytest.StashKey[str]()
# Seconds. A command's own limit comes first; with the time to notice and to end the others, a
# hang lasts under a minute.
LIMIT = IDLE + 5


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--framework",
        choices=framework.NAMES,
        default=framework.default(),
        help="the framework whose tests to run (default: torch, where it is installed)",
    )
    parser.addoption(
        "--all-cases",
        action="store_true",
        help="run every case of the large matrices, and what takes long",
    )
    parser.addoption(
        "--none-is-fine",
        action="store_true",
        help="pass where no test is for this number of ranks",
    )


def pytest_configure(config: pytest.Config) -> None:
    # pytest redirects file descriptor 2 while a test runs; a last word must get past that.
    config.stash[_STDERR] = os.fdopen(os.dup(2), "w")
    config.stash[_NONE_IS_FINE] = config.getoption("none_is_fine")
    name = config.getoption("framework")
    if not framework.installed(name):
        raise pytest.UsageError(f"--framework {name}: {name} is not installed")
    for argument in config.args:
        path = config.invocation_params.dir / argument.partition("::")[0]
        sessions = framework.sessions_for(path.resolve())
        if name not in sessions:
            raise pytest.UsageError(
                f"{argument} needs --framework {sessions[0]}; this session is for {name}"
            )
    framework.start(name)
    config.stash[_ALL_RANKS] = framework.horovod().allgather_object(os.getpid())
    signal.signal(signal.SIGTERM, _end)


def pytest_report_header(config: pytest.Config) -> str:
    hvd = framework.horovod()
    return f"rank {hvd.rank()} of {hvd.size()}, for {config.getoption('framework')}"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    mine = config.getoption("framework") in framework.sessions_for(collection_path)
    return None if mine else True


@pytest.hookimpl(trylast=True)  # after -k and -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    hvd = framework.horovod()
    if not config.getoption("all_cases"):
        left_out = _left_to_all_cases(items, hvd.size())
        config.hook.pytest_deselected(items=[item for item in items if id(item) in left_out])
        items[:] = [item for item in items if id(item) not in left_out]
    together = [item for item in items if _is_shared(item)]
    once = [item for item in items if not _is_shared(item)] if hvd.size() <= 2 else []
    kept = [item for item in together if hvd.size() in item.get_closest_marker("ranks").args]
    if kept or once:
        config.stash[_NONE_IS_FINE] = True  # another rank has some
    kept += once[hvd.rank() :: hvd.size()]
    chosen = {id(item) for item in kept}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in chosen])
    items[:] = kept
    shared = [item.nodeid for item in kept if _is_shared(item)]
    config.stash[_LAST_SHARED] = shared[-1] if shared else ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    marker = item.get_closest_marker("limit")
    limit = marker.args[0] if marker else LIMIT
    # A rank that waits for a slow one is idle, and does not hang.
    processes = item.config.stash[_ALL_RANKS] if _is_shared(item) else [os.getpid()]
    ended = threading.Event()
    arguments = (item, Watch(processes, idle=limit, far=FAR), ended)
    threading.Thread(target=_watch, args=arguments, daemon=True).start()
    try:
        result = yield
        # Else a rank that waits in the last of these would look busy by what others run later.
        if item.nodeid == item.config.stash[_LAST_SHARED] and not item.session.shouldfail:
            framework.horovod().allgather_object("the shared tests are over")
        return result
    finally:
        ended.set()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, object]:
    report = yield
    hvd = framework.horovod()
    if report.failed and _is_shared(item) and hvd.size() > 1:
        item.session.shouldfail = f"{item.nodeid} failed on rank {hvd.rank()}"
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.stash[_NONE_IS_FINE]:
        session.exitstatus = pytest.ExitCode.OK
    kill_all()


def _end(signum: int, frame: object) -> None:
    """What horovodrun asks for where another rank has failed: leave nothing that a test started."""
    kill_all()
    os._exit(128 + signum)


def _is_shared(item: pytest.Item) -> bool:
    return item.get_closest_marker("ranks") is not None


def _left_to_all_cases(items: list[pytest.Item], size: int) -> set[int]:
    """The ids of the items that ``--all-cases`` adds, alike on every rank."""
    left_out = {id(item) for item in items if _is_for_all_cases(item)}
    tests: dict[str, list[pytest.Function]] = {}
    for item in items:
        if item.get_closest_marker("pairwise") and isinstance(item, pytest.Function):
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in tests.values():
        ranks = cases[0].get_closest_marker("ranks")
        factors = tuple(cases[0].callspec.params)
        elsewhere = set(cases[0].get_closest_marker("pairwise").args)
        if ranks and size != (2 if 2 in ranks.args else ranks.args[0]):
            if "ranks" in elsewhere:
                factors = tuple(factor for factor in factors if factor not in elsewhere)
            elsewhere = set(factors)
        settings = [
            {factor: _hashable(case.callspec.params[factor]) for factor in factors} or {"": 0}
            for case in cases
        ]
        chosen = {id(cases[position]) for position in choose(settings, elsewhere=elsewhere)}
        left_out |= {id(case) for case in cases} - chosen
    return left_out


def _is_for_all_cases(item: pytest.Item) -> bool:
    marker = item.get_closest_marker("only_all_cases")
    return marker is not None and framework.current() in (marker.args or framework.NAMES)


def _hashable(value: object) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value


def _watch(item: pytest.Item, watch: Watch, ended: threading.Event) -> None:
    """Die with all children if the test hangs."""
    while not ended.wait(watch.pause):
        if verdict := watch.verdict():
            output = item.config.stash[_STDERR]
            rank = framework.horovod().rank()
            print(f"\nrank {rank} hangs in {item.nodeid}: it {verdict}", file=output, flush=True)
            faulthandler.dump_traceback(file=output, all_threads=True)
            kill_all()
            os._exit(1)
