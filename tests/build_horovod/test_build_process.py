"""Running a command: progress, failure, the time limit."""

import sys
import time
from pathlib import Path

import pytest

from slowmo_hvd.build_horovod.errors import BuildError
from slowmo_hvd.build_horovod.process import duration, excerpt, percent_done, run_logged, tail


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("", None),
        ("Building wheel for horovod", None),
        ("[  1%] Building CXX\n  [ 42%] Building CXX\nwarning: 99%\n", 42),
        ("[ 99%] Linking\n[100%] Built target pytorch\n", 100),
    ],
)
def test_the_percentage_is_cmakes_last(log: str, expected: int | None) -> None:
    assert percent_done(log) == expected


def test_durations_read_well() -> None:
    assert duration(7.9) == "7 s"
    assert duration(65) == "1 min 05 s"


def test_the_tail_is_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {i}\n" for i in range(100)))
    assert tail(log, 2) == "line 98\nline 99"


def test_an_error_far_above_the_end_is_shown_too(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines = ["a.cc:1: error: no such thing", *(f"[ 9%] Building {i}" for i in range(90))]
    log.write_text("\n".join(lines))
    shown = excerpt(log).splitlines()
    assert shown[:2] == ["a.cc:1: error: no such thing", "..."]
    assert shown[-1] == "[ 9%] Building 89"


def test_output_goes_to_the_log_and_success_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    run_logged([sys.executable, "-c", "print('hello')"], label="greeting", log=log)
    assert "hello\n" in log.read_text()
    assert capsys.readouterr().out.startswith("build_horovod: greeting: done (")


def test_a_failure_shows_its_end_and_where_the_rest_is(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = "import sys; print('the reason'); sys.exit(3)"
    with pytest.raises(BuildError, match=r"trying failed \(exit status 3\)") as error:
        run_logged([sys.executable, "-c", program], label="trying", log=log)
    assert str(log) in str(error.value)
    assert "the reason" in str(error.value)


def test_the_time_limit_ends_a_command_and_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(3); open({str(mark)!r}, 'w')"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    started = time.monotonic()
    with pytest.raises(BuildError, match="sleeping did not end within 1 s"):
        run_logged(
            [sys.executable, "-c", program], label="sleeping", log=tmp_path / "log", time_limit=1
        )
    time.sleep(max(0.0, 3.2 - (time.monotonic() - started)))
    assert not mark.exists()
