"""What benchmarks.network makes of its settings, and what it says where something is missing."""

import pytest

from benchmarks.network.__main__ import main
from benchmarks.network.cleanup import name, owner
from benchmarks.network.network import Network
from benchmarks.network.rates import bits_a_second, queue
from benchmarks.network.tools import is_privileged, sentence


@pytest.mark.parametrize(
    ("rate", "bits"),
    [("unshaped", None), ("1gbit", 10**9), ("100mbit", 10**8), ("2.5gbit", 25 * 10**8)],
)
def test_a_rate_is_bits_a_second(rate, bits):
    assert bits_a_second(rate) == bits


@pytest.mark.parametrize("rate", ["", "1", "0mbit", "-1gbit", "1 gbit", "1Gbps", "fast", "1e3mbit"])
def test_what_is_no_rate_is_refused(rate):
    with pytest.raises(ValueError, match="is neither"):
        bits_a_second(rate)
    with pytest.raises(ValueError, match="is neither"):
        Network(2, rate)


def test_the_bucket_holds_a_millisecond_and_at_least_one_packet():
    assert queue("unshaped") == ["noqueue"]
    assert queue("1gbit")[:5] == ["tbf", "rate", "1000000000bit", "burst", "125000b"]
    assert queue("100mbit")[:5] == ["tbf", "rate", "100000000bit", "burst", "65536b"]


@pytest.mark.parametrize("hosts", [0, -1, 251])
def test_a_network_has_hosts_and_no_more_than_addresses(hosts):
    with pytest.raises(ValueError, match=f"from 1 to 250, not {hosts}"):
        Network(hosts)


def test_one_sentence_says_what_is_missing():
    assert sentence(True, []) == ""
    assert sentence(True, ["ip", "tc", "sshd"]) == (
        "benchmarks.network needs ip, tc, sshd (apt-get install iproute2 openssh-server)"
    )
    assert sentence(False, []) == (
        "benchmarks.network needs root on Linux (in a container: one started with --privileged)"
    )
    both = sentence(False, ["sshd"])
    assert "root" in both
    assert both.endswith(" and sshd (apt-get install openssh-server)")


def test_root_without_the_capabilities_is_not_enough():
    assert is_privileged(0, "000001ffffffffff")
    assert not is_privileged(0, "00000000a80425fb")  # root's in a container
    assert not is_privileged(1000, "000001ffffffffff")
    assert not is_privileged(0, "0")


def test_what_belongs_to_a_network_tells_its_process():
    assert owner(f"{name(12, 3)}-h1") == ("slowmo-12-3", 12)
    assert owner("slowmo-demo") is None
    assert owner("other-12-3-h1") is None


def test_the_command_line_says_what_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks.network", "--rate", "fast", "--", "true"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "the rate 'fast' is neither" in capsys.readouterr().err


def test_without_root_one_sentence_is_all(monkeypatch, capsys):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("sys.argv", ["benchmarks.network", "--", "true"])
    assert main() == 1
    said = capsys.readouterr().err
    assert said.startswith("benchmarks.network needs root")
    assert said.count("\n") == 1
