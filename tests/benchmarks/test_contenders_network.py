"""Two contenders on two hosts of this machine, from the command to the table. Needs root, sshd."""

import json
import sys
import uuid

import pytest
from launch import run
from leftovers import MARK, nothing_is_left

from benchmarks.network import cleanup, tools

pytestmark = pytest.mark.skipif(bool(tools.missing()), reason=tools.missing())
SMALL = ["--rates", "unshaped", "--ranks", "2", "--work", "sync1m", "--only", "hvd-fp32,slowmo"]


@pytest.mark.only_all_cases
def test_a_run_and_its_resumption(tmp_path):
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "benchmarks.contenders", *SMALL, "--out", str(tmp_path)]
    done = run([*command, "--repeats", "1", "--limit", "60"], env={MARK: mark})
    assert done.returncode == 0, done.stdout
    assert "[4/4] sync sync1m slowmo, 2 ranks, unshaped, repetition 1:" in done.stdout
    records = json.loads((tmp_path / "results.json").read_text())["jobs"].values()
    assert [record["state"] for record in records] == ["done"] * 4, done.stdout
    for record in records:
        sends = record["job"]["contender"] != "local"
        assert all((rank["bytes"] > 3.9e6) is sends for rank in record["ranks"])
    table = (tmp_path / "results.md").read_text()
    assert "## The sync alone, sync1m, 2 ranks" in table
    assert "What did not run" not in table
    again = run([*command, "--repeats", "1", "--resume"], env={MARK: mark})
    assert again.returncode == 0, again.stdout
    assert "4 of 4 jobs are done already" in again.stdout
    assert nothing_is_left(mark)
    assert cleanup.abandoned() == set()
