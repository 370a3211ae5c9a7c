"""What ends one rank ends the job, with that rank's last words, and leaves no process."""

import textwrap

import pytest
from jobs import job

SCRIPT = """
import faulthandler
import os
import signal

faulthandler.register(signal.SIGTERM, chain=True)  # SIGTERM by itself says nothing


def the_users_own(step):
    if rank == 1 and step == 3:
        {ending}


this = worker(sync_period=2)
for step in range(6):
    the_users_own(step)
    this.step(1.0)
print(f"rank {{rank}} is done", flush=True)
"""


SIGINT = ("os.kill(os.getpid(), signal.SIGINT)", "KeyboardInterrupt")
SIGTERM = ("os.kill(os.getpid(), signal.SIGTERM)", "Current thread 0x")


@pytest.mark.parametrize(
    ("ending", "last_words"),
    [
        ("raise RuntimeError('no such file')", "RuntimeError: no such file"),
        pytest.param(*SIGINT, marks=pytest.mark.only_all_cases("tensorflow")),
        pytest.param(*SIGTERM, marks=pytest.mark.only_all_cases("tensorflow")),
        ("os.kill(os.getpid(), signal.SIGKILL)", "Process 1 exit with status code 137"),
    ],
)
def test_one_rank_ends_and_so_does_the_job(ending: str, last_words: str) -> None:
    ended = job(2, SCRIPT.format(ending=ending))
    assert ended.code != 0
    assert last_words in ended.output, ended.output
    assert "is done" not in ended.output
    if "SIGKILL" not in ending:  # which leaves no time for a traceback
        rank_1 = [line for line in ended.output.splitlines() if line.startswith("[1]")]
        assert any("in the_users_own" in line for line in rank_1), ended.output


def test_a_script_may_end_while_an_average_is_under_way() -> None:
    script = """
    this = worker(300_000, sync_period=2, overlap_steps=1)
    for step in range(2):
        this.step(1.0)
    print(f"rank {rank} is done", flush=True)
    """
    ended = job(2, textwrap.dedent(script))
    assert ended.code == 0, ended.output
    assert ended.output.count("is done") == 2
    assert "Error" not in ended.output, ended.output
