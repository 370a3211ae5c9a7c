"""The way tests run on ranks: a hang or a failure on one rank ends the run, and leaves nothing."""

import os
import re
import shutil
import sys
import threading
import time
import uuid
from fnmatch import fnmatch
from pathlib import Path

import framework
import pytest
from launch import ROOT, horovodrun, kill_all, run
from leftovers import MARK, left_over, nothing_is_left

EACH_FRAMEWORK = [
    pytest.param(name, marks=pytest.mark.skipif(not framework.installed(name), reason="not there"))
    for name in framework.NAMES
]
SLEEP = f"[{sys.executable!r}, '-c', 'import time; time.sleep(300)']"


def nested(
    directory: Path, tests: str, *options: str, ranks: int = 2, folder: str = ""
) -> tuple[int, str, str]:
    """Run ``tests``, in a folder of tests/, as this suite is run.

    Returns the exit code, the output, and the run's mark.
    """
    (directory / "tests" / folder).mkdir(parents=True)
    for name in ("conftest.py", "framework.py", "launch.py", "pairwise.py", "progress.py"):
        shutil.copy(ROOT / "tests" / name, directory / "tests")
    shutil.copy(ROOT / "setup.cfg", directory)
    (directory / "tests" / folder / "test_nested.py").write_text(tests)
    mark = uuid.uuid4().hex
    pytest_ = ["-m", "pytest", "-q", str(directory / "tests"), *options]
    how = {"cwd": directory, "env": {MARK: mark}}
    if ranks == 1:
        done = run([sys.executable, *pytest_], **how)
    else:
        done = horovodrun(ranks, *pytest_, **how)
    return done.returncode, done.stdout, mark


def test_pytest_looks_into_every_folder(pytestconfig: pytest.Config) -> None:
    """It passes over folders with some names, "build" among them, without a word."""
    passed_over = pytestconfig.getini("norecursedirs")
    folders = {path.parent.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert not {name for name in folders for glob in passed_over if fnmatch(name, glob)}


@pytest.mark.parametrize("name", EACH_FRAMEWORK)
def test_a_hang_on_one_rank_becomes_a_failure_that_names_rank_and_test(
    name: str, tmp_path: Path
) -> None:
    code, output, mark = nested(
        tmp_path,
        f"""
import horovod.{name} as hvd
import launch
import pytest
import {name}

@pytest.mark.ranks(2)
@pytest.mark.limit(3)
def test_that_hangs():
    if hvd.rank() == 1:
        launch.run({SLEEP}, timeout=200)  # a child, and it sleeps
    hvd.allreduce({name}.ones([1]), name="rank_0_waits_here")

@pytest.mark.ranks(2)
def test_after_it():
    print("never reached")
""",
        "--framework",
        name,
        folder=name,
    )
    assert code != 0
    test = f"tests/{name}/test_nested.py::test_that_hangs"
    # Both are idle, the one in its sleep and the other in the collective: one is seen first.
    hangs = rf"rank [01] hangs in {re.escape(test)}: it has been idle for 3 s"
    assert re.search(hangs, output), output
    assert "in test_that_hangs" in output  # where it stood
    assert "never reached" not in output
    assert nothing_is_left(mark), left_over(mark)


def test_a_rank_that_waits_for_a_slow_one_does_not_hang(tmp_path: Path) -> None:
    code, output, _ = nested(
        tmp_path,
        """
import time

import horovod.torch as hvd
import pytest
import torch

@pytest.mark.ranks(2)
@pytest.mark.limit(2)
def test_that_is_slow():
    while hvd.rank() == 1 and time.thread_time() < 6:
        pass
    hvd.allreduce(torch.ones([1]), name="rank_0_waits_here")
""",
    )
    assert code == 0, output


def test_a_hang_in_the_last_shared_test_is_found_though_the_other_rank_has_more_to_do(
    tmp_path: Path,
) -> None:
    code, output, mark = nested(
        tmp_path,
        """
import horovod.torch as hvd
import pytest
import torch

@pytest.mark.ranks(2)
@pytest.mark.limit(2)
def test_that_hangs():
    if hvd.rank() == 0:
        hvd.allreduce(torch.ones(1), name="rank 1 does not come")

@pytest.mark.parametrize("number", range(2))
def test_alone(number):
    print("never reached")
    while True:
        pass
""",
    )
    assert code != 0
    assert "hangs in tests/test_nested.py::test_that_hangs: it has been idle for 2 s" in output
    assert "never reached" not in output
    assert nothing_is_left(mark), left_over(mark)


def test_a_failure_on_one_rank_fails_the_run_though_the_other_waits(tmp_path: Path) -> None:
    code, output, mark = nested(
        tmp_path,
        """
import horovod.torch as hvd
import pytest
import torch

@pytest.mark.ranks(2)
@pytest.mark.limit(60)
def test_that_fails_on_rank_1():
    assert hvd.rank() == 0, "as it must"
    hvd.allreduce(torch.ones(1), name="rank 0 waits here")
""",
    )
    assert code != 0
    assert "as it must" in output
    assert "test_that_fails_on_rank_1 failed on rank 1" in output
    assert "hangs" not in output
    assert nothing_is_left(mark), left_over(mark)


def test_a_failure_on_one_rank_ends_what_another_has_started(tmp_path: Path) -> None:
    code, output, mark = nested(
        tmp_path,
        f"""
import pathlib

import horovod.torch as hvd
import launch
import pytest

@pytest.mark.ranks(2)
def test_that_fails_on_rank_0():
    started = pathlib.Path(__file__).with_name("started")
    if hvd.rank() == 1:
        code = f"open({{str(started)!r}}, 'w'); import time; time.sleep(300)"
        launch.run([{sys.executable!r}, "-c", code], timeout=200)
    while not started.exists():
        pass
    assert False, "as it must"
""",
    )
    assert code != 0
    assert "as it must" in output
    assert nothing_is_left(mark), left_over(mark)


def test_shared_tests_run_on_all_ranks_and_others_once_and_children_end(tmp_path: Path) -> None:
    code, output, mark = nested(
        tmp_path,
        f"""
import subprocess

import horovod.torch as hvd
import launch
import pytest

def say(capfd, text):
    with capfd.disabled():
        print(text, flush=True)

@pytest.mark.parametrize("number", range(4))
def test_once(number, capfd):
    say(capfd, f"once {{number}}.")

@pytest.mark.ranks(2)
def test_on_both(capfd):
    say(capfd, f"both {{hvd.rank()}}.")

@pytest.mark.ranks(3)
def test_on_three():
    raise AssertionError("there are two")

def test_that_gives_up_on_its_child():
    with pytest.raises(AssertionError, match="has been idle for 1 s"):
        launch.run({SLEEP}, timeout=1)
""",
    )
    assert code == 0, output
    for text in ("once 0.", "once 1.", "once 2.", "once 3.", "both 0.", "both 1."):
        assert output.count(text) == 1, output
    assert nothing_is_left(mark), left_over(mark)


CASES = """
import pytest

@pytest.mark.ranks(1, 3)
@pytest.mark.pairwise
@pytest.mark.parametrize("a", [1, 2])
@pytest.mark.parametrize(("b", "c"), [(b, c) for b in ([1], {2: 2}) for c in "xy"])
def test_pairs(a, b, c):
    pass

@pytest.mark.pairwise("a", "b")
@pytest.mark.parametrize("a", range(2))
@pytest.mark.parametrize("b", range(4))
def test_alone(a, b):
    pass

@pytest.mark.only_all_cases
def test_that_takes_long():
    pass
"""


@pytest.mark.parametrize(("options", "passed"), [((), 4 + 4), (("--all-cases",), 8 + 8 + 1)])
def test_pairs_of_settings_are_met_and_with_an_option_all_cases(
    options: tuple[str, ...], passed: int, tmp_path: Path
) -> None:
    code, output, _ = nested(tmp_path, CASES, *options, ranks=1)
    assert code == 0, output
    assert f"{passed} passed" in output


def test_a_hang_without_horovodrun_ends_too(tmp_path: Path) -> None:
    code, output, mark = nested(
        tmp_path,
        f"""
import launch
import pytest

@pytest.mark.limit(2)
def test_that_hangs():
    launch.run({SLEEP}, timeout=200)
""",
        ranks=1,
    )
    assert code == 1
    test = "tests/test_nested.py::test_that_hangs"
    assert f"rank 0 hangs in {test}: it has been idle for 2 s" in output
    assert nothing_is_left(mark), left_over(mark)


NEEDS_TWO_RANKS = """
import pytest

@pytest.mark.ranks(2)
def test_on_two():
    pass
"""


@pytest.mark.parametrize(("options", "expected"), [((), 5), (("--none-is-fine",), 0)])
def test_no_test_for_this_number_of_ranks_is_a_failure_unless_said_otherwise(
    options: tuple[str, ...], expected: int, tmp_path: Path
) -> None:
    code, output, _ = nested(tmp_path, NEEDS_TWO_RANKS, *options, ranks=1)
    assert code == expected, output
    assert "1 deselected" in output


def test_a_rank_that_is_dealt_no_test_passes(tmp_path: Path) -> None:
    code, output, _ = nested(tmp_path, "def test_alone():\n    pass\n")
    assert code == 0, output
    assert output.count("1 passed") == 1
    assert output.count("1 deselected") == 1


def test_ranks_with_no_test_between_them_fail(tmp_path: Path) -> None:
    code, output, _ = nested(tmp_path, NEEDS_TWO_RANKS, "-k", "mistyped")
    assert code != 0, output
    assert "1 deselected" in output  # on one rank or on both: the first to end ends the other


@pytest.mark.parametrize("name", EACH_FRAMEWORK)
def test_a_session_passes_over_the_other_frameworks_tests(name: str, tmp_path: Path) -> None:
    (other,) = {*framework.NAMES} - {name}
    (tmp_path / "tests" / other).mkdir(parents=True)
    (tmp_path / "tests" / other / "test_other.py").write_text("raise AssertionError('imported')\n")
    code, output, _ = nested(
        tmp_path, "def test_own():\n    pass\n", "--framework", name, ranks=1, folder=name
    )
    assert code == 0, output
    assert "1 passed" in output


@pytest.mark.parametrize(
    ("name", "path", "needed"),
    [
        ("torch", "tests/tensorflow", "tensorflow"),
        ("torch", "tests/tensorflow/test_session.py::test_one", "tensorflow"),
        ("tensorflow", "tests/core", "torch"),
        ("tensorflow", "tests/test_infrastructure.py", "torch"),
    ],
)
def test_naming_tests_of_the_other_framework_is_an_error_that_says_what_to_add(
    name: str, path: str, needed: str
) -> None:
    done = run([sys.executable, "-m", "pytest", path, "--framework", name])
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: {path} needs --framework {needed}; this session is for {name}" in done.stdout


def test_without_torch_the_session_of_tensorflow_runs_what_needs_no_framework(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tests = ROOT / "tests"
    with_torch = {path: framework.sessions_for(path) for path in tests.iterdir() if path.is_dir()}
    monkeypatch.setattr(framework, "installed", lambda name: name == "tensorflow")
    assert framework.default() == "tensorflow"
    for name in ("core", "build_horovod"):
        assert with_torch[tests / name] == ("torch",)
        assert "tensorflow" in framework.sessions_for(tests / name)
    assert framework.sessions_for(tests / "torch") == ("torch",)
    assert framework.sessions_for(tests / "tensorflow") == ("tensorflow",)


def test_ending_horovodrun_ends_its_ranks_too(tmp_path: Path) -> None:
    script = tmp_path / "waits.py"
    script.write_text(
        "import os, pathlib, signal\n"
        "pathlib.Path(__file__).with_name('up' + os.environ['HOROVOD_RANK']).touch()\n"
        "signal.pause()\n"
    )
    mark = uuid.uuid4().hex
    waiter = threading.Thread(
        target=horovodrun, args=(2, str(script)), kwargs={"env": {MARK: mark}}
    )
    waiter.start()
    while not all((tmp_path / name).exists() for name in ("up0", "up1")):
        assert waiter.is_alive()
        time.sleep(0.1)
    assert sum(str(script) in command for command in left_over(mark)) >= 2
    kill_all()
    waiter.join()
    assert nothing_is_left(mark), left_over(mark)


def test_the_mark_finds_processes() -> None:
    mark = uuid.uuid4().hex
    script = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import leftovers"
    done = run(
        [sys.executable, "-c", f"{script} as t; print(len(t.left_over({mark!r})))"],
        env={MARK: mark},
    )
    assert done.stdout == "1\n"
    assert left_over(mark) == []
    assert MARK not in os.environ
