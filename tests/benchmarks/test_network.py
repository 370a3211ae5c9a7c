"""Two hosts as network namespaces: commands run there, at a rate, and nothing stays behind.

Needs root, sshd and iproute2.
"""

import os
import signal
import sys
import time
import uuid

import pytest
from launch import background, run
from leftovers import MARK, nothing_is_left

from benchmarks.network import cleanup, tools

pytestmark = pytest.mark.skipif(bool(tools.missing()), reason=tools.missing())
ON_TWO_HOSTS = [sys.executable, "-m", "benchmarks.network", "--hosts", "2", "--"]
#: Runs where `Network` does, with this project in its path.
SCRIPT = """
import sys, time
from benchmarks.network import Network, NetworkError

SEND = '''
import socket, sys
from pathlib import Path
import os
if os.environ["HOROVOD_RANK"] == "0":
    with socket.create_server(("h1", 5000)) as server:
        connection = server.accept()[0]
        while connection.recv(2**16):
            pass
else:
    while True:
        try:
            connection = socket.create_connection(("h1", 5000))
            break
        except ConnectionRefusedError:
            pass
    connection.sendall(bytes(5 * 10**6))
    connection.close()
'''

with Network(hosts=2, rate="10mbit") as network:
    def seconds_and_bytes():
        sent, begin = network.bytes_sent("h2"), time.monotonic()
        network.run([sys.executable, "-c", SEND])
        return time.monotonic() - begin, network.bytes_sent("h2") - sent

    slow, sent = seconds_and_bytes()
    network.set_rate("unshaped")
    seconds_and_bytes()
    assert 5e6 < sent < 5.5e6, sent
    assert slow >= 4 * 0.9, slow  # 5 MB at 10 Mbit/s
    try:
        network.run(["false"])
    except NetworkError as error:
        assert "`false` failed" in str(error), error
    else:
        raise AssertionError("no error")
    try:
        network.run(["sh", "-c", "echo begun; sleep 1000"], timeout=4)
    except NetworkError as error:
        assert "was not over after 4 seconds" in str(error), error
        assert str(error).count("stdout>:begun") == 2, error
    else:
        raise AssertionError("no error")
    network.run(["true"])
print("as expected")
"""


@pytest.fixture
def mark():
    """The environment of a run; afterwards nothing of it is left."""
    mark = uuid.uuid4().hex
    yield {MARK: mark}
    assert nothing_is_left(mark)
    assert cleanup.abandoned() == set()


def test_a_command_runs_on_each_host_under_its_own_address(mark):
    words = "import os, socket; name = socket.gethostname(); print('ran', os.environ['PASSED_ON'],"
    words += " os.environ['HOROVOD_HOSTNAME'], socket.gethostbyname(name))"
    done = run([*ON_TWO_HOSTS, "python", "-c", words], env={**mark, "PASSED_ON": "a  b"})
    assert done.returncode == 0, done.stdout
    ran = sorted(line.partition("ran ")[2] for line in done.stdout.splitlines() if "ran " in line)
    assert ran == ["a  b h1 10.0.0.1", "a  b h2 10.0.0.2"], done.stdout


def test_a_failure_is_the_exit_code(mark):
    done = run([*ON_TWO_HOSTS, "false"], env=mark)
    assert done.returncode != 0


def test_rates_bytes_and_errors_in_python(mark):
    done = run([sys.executable, "-c", SCRIPT], env=mark)
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("as expected\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(mark, tmp_path, number):
    process = start_and_send(number, mark, tmp_path / "log")
    assert process.returncode == 128 + number


def test_what_a_kill_leaves_is_removed_at_the_next_start(mark, tmp_path):
    process = start_and_send(signal.SIGKILL, mark, tmp_path / "log")
    assert cleanup.name(process.pid, 0) in cleanup.abandoned()
    done = run([*ON_TWO_HOSTS, "true"], env=mark)
    assert done.returncode == 0, done.stdout


def start_and_send(number, mark, log):
    """Run something endless on two hosts, and send a signal once both are in it."""
    with background([*ON_TWO_HOSTS, "sh", "-c", "echo begun; sleep 1000"], log=log, env=mark) as it:
        deadline = time.monotonic() + 40
        while log.read_text().count("begun") < 2:
            assert it.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        os.kill(it.pid, number)
        it.wait(timeout=40)
    return it
