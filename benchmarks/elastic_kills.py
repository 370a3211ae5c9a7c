"""Elastic training with workers killed at random moments: what is lost.

``python -m benchmarks.elastic_kills --framework torch --kills 24`` starts Horovod by itself, with
workers of this machine. Each run has up to eight kills, one at each moment of
tests/faults/elastic/plan.py in an order of its own. The runs without faults have the same lengths
and other seeds: the spread of their final losses is the noise.
"""

import argparse
import dataclasses
import random
import statistics
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from faults.elastic.cluster import Report, run
from faults.elastic.plan import MOMENTS, Plan, draw

SECONDS_A_KILL = 100  # before a run counts as hanging


def drawn_plans(kills: int, seed: int) -> list[Plan]:
    """Runs that have so many kills together."""
    draws = random.Random(seed)
    plans = []
    for first in range(0, kills, len(MOMENTS)):
        moments = draws.sample(MOMENTS, min(len(MOMENTS), kills - first))
        plans.append(draw(draws.randrange(10**6), moments))
    longest = max(plan.steps for plan in plans)
    return [dataclasses.replace(plan, steps=longest) for plan in plans]


def show(what: str, report: Report) -> None:
    problems = "; ".join(report.problems()) or "survived"
    print(f"{what}, {report.seconds:.0f} s, final loss {report.loss:.4f}: {problems}", flush=True)
    if report.problems():
        quiet = ("stepped", "saved", "committed")
        print(*(told for told in report.events if told["event"] not in quiet), sep="\n")
        print(report.output, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--framework", choices=("torch", "tensorflow"), required=True)
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", type=int, default=5, help="how many runs without kills")
    arguments = parser.parse_args()
    plans = drawn_plans(arguments.kills, arguments.seed)
    tried: Counter[str] = Counter()
    survived: Counter[str] = Counter()
    noisy: list[Report] = []
    for plan in plans:
        limit = SECONDS_A_KILL * (1 + len(plan.kills))
        tried.update(kill.moment for kill in plan.kills)
        try:
            report = run(arguments.framework, plan, limit)
        except AssertionError as hang:
            print(f"{plan}\n{hang}", flush=True)
            continue
        show(f"{len(plan.kills)} kills, seed {plan.seed}", report)
        if not report.problems():
            survived.update(report.killed)
            noisy.append(report)
    quiet = []
    for seed in range(arguments.quiet):
        plan = Plan(seed, plans[0].steps, workers=4)
        quiet.append(run(arguments.framework, plan, SECONDS_A_KILL))
        show(f"no kills, seed {seed}", quiet[-1])
    print(f"\n{'killed':28}{'tried':>7}{'survived':>10}")
    for moment in MOMENTS:
        print(f"{moment:28}{tried[moment]:7}{survived[moment]:10}")
    print(f"{'all':28}{sum(tried.values()):7}{sum(survived.values()):10}")
    print(f"committed steps lost: {sum(report.lost_steps() for report in noisy)}")
    losses = [report.loss for report in quiet]
    middle = statistics.mean(losses)
    print(f"final loss without kills: {min(losses):.4f} to {max(losses):.4f}, mean {middle:.4f}")
    if noisy:
        with_kills = [report.loss for report in noisy]
        print(f"final loss with kills:    {min(with_kills):.4f} to {max(with_kills):.4f}")
        farthest = max(abs(loss - middle) for loss in with_kills)
        spread = max(abs(loss - middle) for loss in losses)
        print(f"farthest from that mean: {farthest:.4f} with kills, {spread:.4f} without")
    return 0 if survived == tried else 1


if __name__ == "__main__":
    sys.exit(main())
