"""Train on real data with Horovod's own optimizer, Local SGD and SlowMo, and compare them.

``python examples/demo.py --workers 2`` starts the workers itself, for each framework that is
installed. It needs scikit-learn, for its handwritten digits, and matplotlib. What the workers do is
in `demo_torch.py` and `demo_keras.py`.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FRAMEWORKS = {"torch": "PyTorch", "tensorflow": "Keras"}
SCRIPTS = {"torch": "demo_torch.py", "tensorflow": "demo_keras.py"}
# What TensorFlow prints as it starts, whatever its log level is.
NOISE = re.compile(r"(\[\d+\]<stderr>:)?(WARNING: All log messages before absl|I0000 00:00:)")
Looks = list[dict[str, Any]]  # what rank 0 reported of one run, a dict at each sync
Runs = dict[str, dict[int, Looks]]  # by method and seed


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    installed = [name for name in FRAMEWORKS if importlib.util.find_spec(name)]
    add("--frameworks", nargs="+", choices=FRAMEWORKS, default=installed, help="to train with")
    add("--workers", type=int, default=2, help="processes on this machine")
    add("--seeds", type=int, default=3, help="train everything so often, from other weights")
    add("--epochs", type=int, default=15, help="passes over the 1257 training images")
    add("--global-batch", type=int, default=64, help="images a step, all workers' together")
    add("--lr", type=float, default=0.05, help="learning rate γ, of every method")
    add("--sync-period", type=int, default=12, help="τ, of Local SGD and SlowMo")
    add("--slow-momentum", type=float, nargs="+", default=[0.4, 0.6], help="β, a SlowMo run each")
    add("--plot", type=Path, default=Path("demo.png"), help="where to save the plot")
    args = parser.parse_args()
    if args.workers < 1 or args.global_batch % args.workers:
        parser.error(f"--global-batch {args.global_batch} must be divisible by --workers")
    return args


def main() -> None:
    args = parse_arguments()
    setting = (
        f"{args.workers} workers, SGD with Nesterov momentum at lr {args.lr:g}, {args.epochs} "
        f"epochs, global batch {args.global_batch}, τ={args.sync_period}, seeds: {args.seeds}"
    )
    print(f"Handwritten digits, a small CNN, {setting}")
    results: dict[str, Runs] = {}
    for framework in args.frameworks:
        print(f"\n{FRAMEWORKS[framework]}")
        runs = results.setdefault(FRAMEWORKS[framework], {})
        for look in start_workers(SCRIPTS[framework], args.workers):
            runs.setdefault(look["method"], {}).setdefault(look["seed"], []).append(look)
            show_progress(look, args.seeds)
    for framework, runs in results.items():
        print_table(framework, runs)
    print(
        "\nMean over the seeds ± standard deviation between them. MB sent: payload that a worker\n"
        "hands to allreduce. The test has 540 images: too few to rank the methods by accuracy.\n"
        "One learning rate for all, tuned for none; try --lr 0.1 to see how much hangs on it."
    )
    draw(results, setting, args.plot)
    print(f"\nLoss over steps and over bytes: {args.plot.resolve()}")


def start_workers(script: str, workers: int) -> Iterator[dict[str, Any]]:
    """Run a script under horovodrun; yield what rank 0 reports, as it comes."""
    options = ["--gloo", "--disable-cache", "-np", str(workers)]  # no ~/.horovod
    launcher = [sys.executable, "-m", "horovod.runner.launch", *options]
    job = subprocess.Popen(
        [*launcher, sys.executable, str(Path(__file__).with_name(script)), *sys.argv[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ},
    )
    assert job.stdout is not None
    for line in job.stdout:
        text = line.removeprefix("[0]<stdout>:")  # horovodrun puts the rank before every line
        if text.startswith("{"):
            yield json.loads(text)
        elif not NOISE.match(line):
            print(line, end="", file=sys.stderr)
    if job.wait() != 0:
        raise SystemExit(f"the training failed: horovodrun ended with status {job.returncode}")


def show_progress(look: dict[str, Any], seeds: int) -> None:
    """One line a run, rewritten in place on a terminal, else printed when the run is over."""
    over = "accuracy" in look
    if not over and not sys.stdout.isatty():
        return
    bar = "█" * round(12 * look["step"] / look["steps"])
    line = (
        f"seed {look['seed'] + 1}/{seeds}  {look['method']:18}  {bar:·<12}  "
        f"step {look['step']:>3}/{look['steps']}  loss {look['loss']:.4f}  "
        f"{look['bytes'] / 1e6:5.2f} MB  {look['seconds']:4.1f} s"
    )
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - 1
        line = f"\r{line[:room]:<{room}}"
    print(line, end="\n" if over else "", flush=True)


def print_table(framework: str, runs: Runs) -> None:
    """The ends of all runs, as means over the seeds."""
    print(f"\n{framework:18}  test accuracy %     training loss  seconds  syncs  MB sent")
    for method, by_seed in runs.items():
        ends = [looks[-1] for looks in by_seed.values()]
        accuracy = spread([100 * end["accuracy"] for end in ends], digits=1)
        loss = spread([end["loss"] for end in ends], digits=4)
        seconds = statistics.mean(end["seconds"] for end in ends)
        sent = f"{ends[0]['syncs']:5}  {ends[0]['bytes'] / 1e6:7.2f}"
        print(f"{method:18}  {accuracy:>15}  {loss:>16}  {seconds:7.1f}  {sent}")


def spread(values: list[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def draw(results: dict[str, Runs], setting: str, path: Path) -> None:
    """Training loss over steps and over megabytes: the mean of the seeds, and each seed thinly."""
    import matplotlib as mpl

    mpl.use("Agg")  # for machines without a screen
    from matplotlib import pyplot as plt

    figure, rows = plt.subplots(
        len(results),
        2,
        figsize=(11, 0.6 + 3.8 * len(results)),
        sharex="col",
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for panels, (framework, runs) in zip(rows, results.items(), strict=True):
        draw_runs(panels, runs)
        panels[0].set(ylabel=f"{framework}: loss on the training images", yscale="log")
        panels[0].legend(frameon=False)
        for panel in panels:
            panel.grid(which="major", color="#dddddd", linewidth=0.6)
            panel.spines[["top", "right"]].set_visible(False)
    rows[-1][0].set(xlabel="steps")
    rows[-1][1].set(xlabel="megabytes each worker handed to allreduce (log scale)", xscale="log")
    rows[-1][1].xaxis.set_major_formatter("{x:g}")
    figure.suptitle(f"Handwritten digits: {setting}", fontsize=10, color="#444444")
    figure.savefig(path, dpi=120)


def draw_runs(panels: Any, runs: Runs) -> None:
    """One framework's runs: over steps in the first panel, over megabytes in the second."""
    colors = ["#444444", "#d98c1f", "#2f7ed8", "#1b9e62", "#9b4fc0", "#c8383a"]
    megabyte = 1e6
    for index, (method, by_seed) in enumerate(runs.items()):
        color = colors[index % len(colors)]
        for panel, key, unit in zip(panels, ("step", "bytes"), (1, megabyte), strict=True):
            curves = [[look["loss"] for look in looks] for looks in by_seed.values()]
            where = [look[key] / unit for look in next(iter(by_seed.values()))]
            for curve in curves:
                panel.plot(where, curve, color=color, alpha=0.25, linewidth=0.8)
            mean = [statistics.mean(losses) for losses in zip(*curves, strict=True)]
            panel.plot(where, mean, color=color, linewidth=2, label=method)


if __name__ == "__main__":
    main()
