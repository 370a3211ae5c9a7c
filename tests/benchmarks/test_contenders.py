"""What benchmarks.contenders makes of its arguments and of its results; nothing is measured."""

import dataclasses
import json

import pytest

from benchmarks.contenders.__main__ import RESULTS, main, parse
from benchmarks.contenders.families.overlap import pace
from benchmarks.contenders.figures import Figures, curve, steps_to
from benchmarks.contenders.jobs import Job, Plan, rounds
from benchmarks.contenders.place import Place, reports
from benchmarks.contenders.plots import draw
from benchmarks.contenders.registry import CONTENDERS, with_baselines
from benchmarks.contenders.runner import in_words, outcome
from benchmarks.contenders.store import Store
from benchmarks.contenders.table import markdown
from benchmarks.contenders.works import TRAININGS, work


def speed(seconds, peak=0, **more):
    return {"steps": 10, "seconds": seconds, "bytes": 10**7, "peak": peak, **more}


def sync(period, steps=1, syncs=(), raws=()):
    lists = {"periods": [period] * 3, "syncs": list(syncs), "raws": list(raws)}
    return {"steps": steps, "bytes": 4e6, **lists}


def learn(*losses):
    return {"losses": [[12 * number, 1.0 * number, loss] for number, loss in enumerate(losses)]}


def made(*results):
    """Records of jobs: each is a measure, a work, a contender, ranks, a repetition and a result."""
    records = {}
    for measure, name, contender, ranks, repetition, result in results:
        job = Job(measure, name, contender, ranks, "1gbit", repetition, 0.02)
        if isinstance(result, str):
            record = {"state": "cannot", "says": result}
        else:
            record = {"state": "done", "says": "", "ranks": [result] * ranks}
        records[job.key] = {"job": dataclasses.asdict(job), **record}
    return records


SIZE = 4 * work("convnet").parameters
SMALL = made(
    ("speed", "convnet", "local", 2, 0, speed(4.0)),
    ("speed", "convnet", "local", 2, 1, speed(6.0)),
    ("speed", "convnet", "local", 4, 0, speed(8.0)),
    ("speed", "convnet", "slowmo", 2, 0, speed(5.0, peak=2 * SIZE)),
    ("speed", "convnet", "slowmo", 2, 1, speed(6.0, peak=2 * SIZE)),
    ("speed", "convnet", "slowmo", 4, 0, speed(16.0)),
    ("sync", "sync1m", "local", 2, 0, sync(0.1)),
    ("sync", "sync1m", "raw", 2, 0, sync(0.5)),
    ("sync", "sync1m", "ddp", 2, 0, sync(0.6)),
    ("sync", "sync1m", "slowmo", 2, 0, sync(1.2, steps=4, syncs=[0.75], raws=[0.6])),
    ("sync", "sync10m", "raw", 2, 0, sync(5.0)),
    ("learn", "convnet", "slowmo", 2, 0, learn(7.0, 0.6, 0.4)),
    ("learn", "convnet", "ddp", 2, 0, learn(7.0, 6.0, 0.9)),
    ("speed", "convnet", "fairscale", 2, 0, "AssertionError: not compiled with CUDA"),
)


def test_figures_are_medians_of_what_was_measured_in_one_repetition():
    figures = Figures(SMALL)
    cell = ("convnet", 2, "1gbit", "slowmo")
    throughput = figures.throughput(cell)
    assert (throughput.median, throughput.low, throughput.high) == pytest.approx((0.9, 0.8, 1.0))
    assert throughput.count == 2
    assert figures.extra_memory(cell).median == pytest.approx(2.0)
    assert figures.step_bytes(cell).median == 10**6


def test_a_sync_is_what_is_recorded_or_else_what_it_adds_to_the_steps():
    figures = Figures(SMALL)
    ours, ddp = (("sync1m", 2, "1gbit", name) for name in ("slowmo", "ddp"))
    assert figures.sync_seconds(ours).median == pytest.approx(0.75)
    assert figures.sync_ratio(ours).median == pytest.approx(0.75 / 0.6)
    assert figures.stall_ratio(ours).median == pytest.approx((1.2 - 4 * 0.1) / 0.6)
    assert figures.sync_ratio(ddp).median == pytest.approx((0.6 - 0.1) / 0.5)
    assert figures.sync_ratio(("sync1m", 2, "1gbit", "raw")).median == 1
    assert figures.sync_ratio(("sync10m", 2, "1gbit", "ddp")) is None


def test_the_loss_is_the_workers_mean():
    record = {"ranks": [learn(8.0, 2.0, 1.0), learn(6.0, 1.0, 0.5)]}
    assert curve(record) == [(0, 0.0, 7.0), (12, 1.0, 1.5), (24, 2.0, 0.75)]
    assert steps_to(record, 1.5) == 12
    assert steps_to(record, 1.0) == 20  # two thirds of the way from 1.5 to 0.75
    assert steps_to(record, 0.5) is None


def test_the_table_has_all_figures_and_what_failed():
    table = markdown(Figures(SMALL))
    assert "## Training, convnet, 4 ranks" in table
    assert "| slowmo | 0.90 (0.80 to 1.00) | 0.55 (0.50 to 0.60) | 1.00 (1.00 to 1.00) |" in table
    assert "| slowmo | 1.25 | 0.75 | 1.33 | 4.00 |" in table
    assert "| convnet, target 0.5 | 2 | slowmo | 0.02 | 0.400 | 18 | 10 |" in table
    assert "| ddp | 0.02 | 0.900 | not reached | – |" in table
    assert "- fairscale (fairscale SlowMoDistributedDataParallel): `AssertionError: not" in table


def test_nothing_measured_is_an_empty_table_and_no_picture(tmp_path):
    assert "|" not in markdown(Figures({}))
    assert draw(Figures({}), tmp_path) == []


def test_the_pictures_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    drawn = draw(Figures(SMALL), tmp_path)
    assert [path.name for path in drawn] == [
        "speed.png",
        "sync.png",
        "losses.png",
        "times.png",
        "ranks.png",
        "scale.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rates", "fast"], "the rate 'fast' is neither"),
        (["--ranks", "2,0"], "'0' is no whole number above 0"),
        (["--repeats", "many"], "'many' is no whole number"),
        (["--work", "sync0m"], "the work 'sync0m' is none of"),
        (["--only", "slowmo,slomo"], "'slomo' is none of the contenders local, raw"),
        (["--measure", "taste"], "'taste' is none of speed, sync, learn"),
        (["--grid", "--scale"], "give one of them"),
        (["--grid", "--work", "sync1m"], "--grid needs a training: convnet or transformer"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_said(arguments, says, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(arguments)
    assert says in capsys.readouterr().err


def test_the_arguments_are_lists():
    parsed = parse(["--rates", "1gbit,unshaped", "--ranks", "2", "--only", "raw"])
    assert (parsed.rates, parsed.ranks) == (["1gbit", "unshaped"], [2])
    assert parsed.only == ["raw"]
    assert parsed.work == ["convnet", "transformer", "sync100m"]
    assert parse(["--scale"]).work == ["sync1m", "sync10m", "sync50m", "sync200m"]


def test_repetitions_take_turns_and_none_is_always_first():
    plan = Plan(["1gbit"], [2], ["convnet"], ["ddp", "slowmo"], ["speed"], 2)
    jobs = [(job.repetition, job.contender) for job in plan.jobs(lambda *known: None)]
    assert jobs == [
        (0, "local"),
        (0, "ddp"),
        (0, "slowmo"),
        (1, "ddp"),
        (1, "slowmo"),
        (1, "local"),
    ]


def test_a_grid_is_for_what_learns_and_its_best_rate_is_taken_later():
    plan = Plan(["1gbit", "100mbit"], [2], ["convnet", "sync1m"], ["ddp"], ["speed", "learn"], 3)
    grid = dataclasses.replace(plan, grid=True).jobs(lambda *known: None)
    assert [(job.measure, job.rate, job.lr) for job in grid] == [
        ("learn", "unshaped", lr) for lr in (0.00125, 0.0025, 0.005)
    ]
    later = plan.jobs(lambda name, contender, ranks: 0.005)
    assert {job.lr for job in later if job.measure == "learn"} == {0.005}
    assert {job.lr for job in later if job.measure == "speed"} == {0.0025}
    assert grid[2].key in {job.key for job in later}
    assert rounds("unshaped") > rounds("1gbit") > rounds("100mbit") >= 2


def test_a_work_that_waits_has_speed_alone():
    plan = Plan(["1gbit"], [2], ["wait1m", "sync1m"], ["ddp"], ["speed", "sync", "learn"], 1)
    found = {(job.work, job.measure) for job in plan.jobs(lambda *known: None)}
    assert found == {("wait1m", "speed"), ("sync1m", "sync")}


def test_an_overlap_is_a_part_of_the_window():
    assert pace(12, overlap=0) == {}
    assert pace(12, overlap=1 / 6) == {"overlap_steps": 2}
    assert pace(12, overlap=1 / 2, fragments=True) == {"overlap_steps": 6, "fragments": 3}
    assert pace(2, overlap=1 / 6, fragments=True) == {"overlap_steps": 1, "fragments": 2}


def test_contenders_come_with_what_they_are_compared_with():
    assert with_baselines(["keras-slowmo"], "speed") == ["keras-local", "keras-slowmo"]
    assert with_baselines(["ddp"], "sync") == ["local", "raw", "ddp"]
    assert with_baselines(["local", "raw", "ddp"], "learn") == ["ddp"]
    assert with_baselines(["raw"], "speed") == []
    assert with_baselines(["raw-behind"], "learn") == []
    assert {entry.baseline for entry in CONTENDERS.values()} == {"local", "keras-local"}
    assert all(work(name).held_out for name in TRAININGS)


def test_results_are_kept_after_each_job_and_gone_on_with(tmp_path):
    path = tmp_path / RESULTS
    store = Store(path, resume=False)
    jobs = [Job("learn", "convnet", "ddp", 2, "unshaped", 0, lr) for lr in (0.02, 0.08, 0.3)]
    for job, last in zip(jobs, (0.9, 0.3, float("nan")), strict=True):
        record = {"state": "done", "says": "", "ranks": [learn(7.0, last)]}
        store.add(job, {"job": dataclasses.asdict(job), **record})
    other = dataclasses.replace(jobs[0], contender="slowmo")
    store.add(other, {"job": dataclasses.asdict(other), "state": "failed", "says": "killed"})
    again = Store(path, resume=True)
    assert [again.is_done(job) for job in (*jobs, other)] == [True, True, True, False]
    assert again.learning_rate("convnet", "ddp", 2) == 0.08
    assert again.learning_rate("convnet", "ddp", 4) is None
    with pytest.raises(FileExistsError, match="give --resume to go on"):
        Store(path, resume=False)
    path.write_text(json.dumps({"jobs": {"one": {"job": {}}}}))
    with pytest.raises(ValueError, match="is no file of results"):
        Store(path, resume=True)


def test_what_ranks_leave_is_read_in_their_order(tmp_path):
    for rank in (10, 2):
        Place(tmp_path, rank, 11).report({"rank": rank})
    assert reports(tmp_path) == [{"rank": 2}, {"rank": 10}]


def test_what_came_of_a_job():
    done = outcome([speed(5.0), speed(6.0)], 2, "")
    assert (done["state"], in_words(done)) == ("done", "0.500 s a step")
    cannot = outcome([{"cannot": "TypeError: no such argument"}] * 2, 2, "")
    assert (cannot["state"], in_words(cannot)) == (
        "cannot",
        "cannot run: TypeError: no such argument",
    )
    failed = outcome([speed(5.0), {"error": "Traceback\nOSError: gone\n"}], 2, "noise")
    assert (failed["state"], in_words(failed)) == ("failed", "failed: OSError: gone")
    silent = outcome([speed(5.0)], 2, "Timeout (0:15:00)!")
    assert (silent["state"], silent["says"]) == (
        "failed",
        "1 of 2 ranks have left no result: Timeout (0:15:00)!",
    )


def test_results_that_are_there_are_not_overwritten(tmp_path, monkeypatch, capsys):
    (tmp_path / RESULTS).write_text('{"jobs": {}}')
    monkeypatch.setattr("sys.argv", ["benchmarks.contenders", "--out", str(tmp_path)])
    assert main() == 2
    assert "give --resume to go on" in capsys.readouterr().err


def test_without_root_one_sentence_is_all(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("sys.argv", ["benchmarks.contenders", "--out", str(tmp_path)])
    assert main() == 1
    said = capsys.readouterr().err
    assert said.startswith("benchmarks.network needs root")
    assert said.count("\n") == 1
