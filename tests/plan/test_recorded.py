"""The planner goes by a script's own records."""

import json
from pathlib import Path
from typing import Any

import pytest
from launch import horovodrun

from slowmo_hvd.core.records import SyncRecord
from slowmo_hvd.core.schedule import Sync
from slowmo_hvd.plan.__main__ import main
from slowmo_hvd.plan.recorded import read_records

SCRIPT = """
import json, sys, torch
import slowmo_hvd.torch as hvd

hvd.init()
weight = torch.nn.Parameter(torch.zeros(5000))
optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=0.1), sync_period=2)
if hvd.rank() == 0:
    file = open(sys.argv[1], "w")
    optimizer.register_sync_hook(lambda record: print(json.dumps(record.asdict()), file=file))
for _ in range(10):
    optimizer.zero_grad()
    weight.sum().backward()
    optimizer.step()
"""


def line(step: int, **more: Any) -> str:
    figures = {"learning_rates": (0.1,), "displacement_norm": 1.0, "drift": 1.0, "window": 0}
    figures |= {"kind": Sync.WINDOW, "workers": 4, "bytes": 4_000_000, "seconds": 0.5}
    return json.dumps(SyncRecord(step=step, **(figures | more)).asdict())


def test_steps_bytes_and_seconds_are_those_of_whole_windows() -> None:
    lines = [
        line(10, seconds=9.0),  # the first one comes after who knows how long
        line(20, since_last=3.5),
        line(22, since_last=99.0, kind=Sync.FLUSH),
        line(30, since_last=2.9),  # 0.3 a step
        line(40, since_last=3.5),
    ]
    found = read_records("\n".join(lines))
    assert found.parameters == 1_000_000
    assert found.step == pytest.approx(0.3)
    assert found.wire.workers == 4
    assert found.wire.seconds(8e6, 4) == pytest.approx(1.0)


def test_an_overlaps_average_costs_its_hidden_seconds_too() -> None:
    lines = [line(10 * n, since_last=3.1, seconds=0.1, hidden=1.1) for n in range(1, 5)]
    found = read_records("\n".join(lines))
    assert found.step == pytest.approx(0.3)
    assert found.wire.seconds(4e6, 4) == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "1 records of whole windows are too few: give 3 or more"),
        (f"{line(10)}\n{line(20)[:30]}", "line 2 is no record: "),
        ('{"step": 1}', "line 1 is no record: it has no bytes"),
        ("3", "line 1 is no record: 'int' object is not iterable"),
    ],
)
def test_what_are_no_records_is_said(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_records(text)


def test_a_script_writes_them_and_the_planner_reads_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    records = tmp_path / "records.jsonl"
    result = horovodrun(2, str(tmp_path / "script.py"), str(records))
    assert result.returncode == 0, result.stdout
    assert main(["--records", str(records)]) == 0
    assert "2 workers, 0.005014M parameters" in capsys.readouterr().out
    simulated = ["--simulate", "workers=8", "rate=10gbit"]
    assert main(["--records", str(records), "--parameters", "7B", *simulated]) == 0
    assert "8 workers, 7000M parameters" in capsys.readouterr().out
