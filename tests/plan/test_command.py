"""The planner as a user runs it."""

import json
import re
from pathlib import Path

import pytest
from launch import horovodrun

from slowmo_hvd.plan.__main__ import main
from slowmo_hvd.plan.arguments import parse

MODEL = ["--parameters", "25.6M", "--step-seconds", "0.25"]
CLUSTER = ["--simulate", "workers=8", "rate=10gbit", "latency=50us"]


def test_a_cluster_that_is_not_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    assert main([*MODEL, "--periods", "12,4", "--json", str(path), *CLUSTER]) == 0
    said = capsys.readouterr().out
    assert "8 workers, 25.6M parameters, 0.25 s a local step" in said
    assert re.search(r"^ +gradient averaging +0\.39\d\d +0\.6\d +179\.20$", said, re.MULTILINE)
    assert re.search(r"^ +12  slowmo +0\.26\d\d +0\.9\d +14\.93$", said, re.MULTILINE)
    assert re.search(r"^slowmo: sync_period=\d+ costs at most 5%$", said, re.MULTILINE)
    assert "slow_momentum=0.4 learnt best with 8 workers in an experiment with SGD" in said
    found = json.loads(path.read_text())
    assert found["training"] == {"parameters": 25_600_000, "step": 0.25, "spread": 0.0}
    latency = pytest.approx(5e-5)
    assert found["wire"] == {"kind": "ring", "workers": 8, "rate": 1e10, "latency": latency}
    assert {row["period"] for row in found["rows"]} == {0, 4, 12}


def test_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plan.png"
    assert main([*MODEL, "--plot", str(path), *CLUSTER]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give --parameters and --step-seconds, or --records"),
        (["--parameters", "many", "--step-seconds", "1"], "'many' is not such as 25.6M or 7B"),
        ([*MODEL[:3], "0"], "'0' is not such as 0.25"),
        ([*MODEL, "--periods", "4,0"], "'4,0' is not such as 4,12,48"),
        ([*MODEL, "--ranks", "0"], "'0' is not such as 0,1,2,3"),
        (["--records", "nowhere"], "No such file or directory: 'nowhere'"),
        ([*MODEL, "--simulate", "workers=8"], "give workers=, rate= and perhaps latency="),
        ([*MODEL, "--simulate", "nodes=8"], "latency=, not nodes"),
        ([*MODEL, "--simulate", "workers=1", "rate=1gbit"], "workers=1 is no whole number above 1"),
        ([*MODEL, "--simulate", "workers=2", "rate=fast"], "'fast' is not such as 10gbit"),
        ([*MODEL, *CLUSTER[:3], "latency=5"], "'5' is not such as 50us"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_said(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(arguments)
    assert says in capsys.readouterr().err


def test_numbers_with_units() -> None:
    parsed = parse(["--parameters", "1.5k", "--step-seconds", ".5", "--spread", "0", *CLUSTER])
    assert (parsed.parameters, parsed.step_seconds, parsed.spread) == (1500, 0.5, 0.0)
    assert (parsed.simulate.rate, parsed.simulate.latency) == (1e10, pytest.approx(5e-5))


def test_two_workers_measure_their_own_cluster_and_one_of_them_prints(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    model = ["--parameters", "100k", "--step-seconds", "0.01", "--json", str(path)]
    result = horovodrun(2, "-m", "slowmo_hvd.plan", *model)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("2 workers, 0.1M parameters, 0.01 s a local step") == 1
    points = json.loads(path.read_text())["wire"]["points"]
    assert {size: points[size][-1][0] for size in points} == {"4": 400_000, "2": 200_000}
    assert all(seconds > 0 for size in points for _, seconds in points[size])


def test_a_process_set_is_measured_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    model = ["--parameters", "10k", "--step-seconds", "0.01", "--json", str(path)]
    result = horovodrun(3, "-m", "slowmo_hvd.plan", *model, "--ranks", "1,2")
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("2 workers, 0.01M parameters") == 1
    assert json.loads(path.read_text())["wire"]["workers"] == 2
    result = horovodrun(2, "-m", "slowmo_hvd.plan", *model, "--ranks", "1,2")
    assert result.returncode != 0
    assert "--ranks: there is no rank 2, there are 2" in result.stdout


def test_one_worker_is_told_how_to_run_it() -> None:
    result = horovodrun(1, "-m", "slowmo_hvd.plan", *MODEL)
    assert result.returncode != 0
    assert "there is one worker and nothing to send: run it under horovodrun" in result.stdout
