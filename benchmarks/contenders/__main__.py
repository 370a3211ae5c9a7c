"""Measure all contenders in one run, in turns, on hosts within this machine.

``python -m benchmarks.contenders --rates unshaped,1gbit,100mbit --ranks 2,4 --out results``
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks.contenders.figures import Figures
from benchmarks.contenders.jobs import MEASURES, SCALE, Plan
from benchmarks.contenders.plots import draw
from benchmarks.contenders.registry import CONTENDERS
from benchmarks.contenders.runner import Budget, run
from benchmarks.contenders.store import Store
from benchmarks.contenders.table import markdown
from benchmarks.contenders.works import TRAININGS, work
from benchmarks.network import NetworkError
from benchmarks.network.rates import bits_a_second

RESULTS = "results.json"
T = TypeVar("T")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what is wrong with it ends the program with a sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.contenders",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--rates", type=_list(_rate), default="unshaped,1gbit,100mbit", help="of the links")
    add("--ranks", type=_list(_count), default="2,4", help="hosts, with a rank on each")
    add("--work", type=_list(_work), default="convnet,transformer,sync100m", help="what to do")
    add("--only", type=_list(_contender), default=",".join(CONTENDERS), help="contenders")
    add("--measure", type=_list(_measure), default=",".join(MEASURES), help="what to measure")
    add("--repeats", type=_count, default=3, help="how often each job is done")
    add("--out", type=Path, default=Path("contenders"), help="the folder for the results")
    add("--resume", action="store_true", help="go on with the results that are there")
    add("--grid", action="store_true", help="look for the learning rates, and nothing else")
    add("--scale", action="store_true", help="only the sync, of 1M to 200M parameters")
    add("--steps", type=_count, default=144, help="of each training that is to learn")
    add("--every", type=_count, default=12, help="steps from one look at the loss to the next")
    add("--limit", type=_count, default=900, help="seconds of one job, after which it is ended")
    add("--list", action="store_true", help="print the contenders' names, and nothing else")
    parsed = parser.parse_args(arguments)
    if parsed.grid and parsed.scale:
        parser.error("--grid is for trainings, --scale for the sync: give one of them")
    if parsed.scale:
        parsed.work = list(SCALE)
    elif parsed.grid and not set(parsed.work) & set(TRAININGS):
        parser.error(f"--grid needs a training: {' or '.join(TRAININGS)} in --work")
    return parsed


def _list(parse_one: Callable[[str], T]) -> Callable[[str], list[T]]:
    def parse_all(text: str) -> list[T]:
        return list(dict.fromkeys(parse_one(part.strip()) for part in text.split(",")))

    return parse_all


def _said(parse_one: Callable[[str], T]) -> Callable[[str], T]:
    """Let argparse show what a ValueError says."""

    def parse_or_say(text: str) -> T:
        try:
            return parse_one(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_or_say


@_said
def _rate(text: str) -> str:
    bits_a_second(text)
    return text


@_said
def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is no whole number above 0")
    return int(text)


@_said
def _work(text: str) -> str:
    return work(text).name


@_said
def _contender(text: str) -> str:
    if text not in CONTENDERS:
        raise ValueError(f"{text!r} is none of the contenders {', '.join(CONTENDERS)}")
    return text


@_said
def _measure(text: str) -> str:
    if text not in MEASURES:
        raise ValueError(f"{text!r} is none of {', '.join(MEASURES)}")
    return text


def main() -> int:
    arguments = parse()
    if arguments.list:
        print(*(f"{name:20} {entry.says}" for name, entry in CONTENDERS.items()), sep="\n")
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        rates=arguments.rates,
        ranks=arguments.ranks,
        works=arguments.work,
        contenders=arguments.only,
        measures=arguments.measure,
        repetitions=arguments.repeats,
        grid=arguments.grid,
    )
    try:
        store = Store(arguments.out / RESULTS, resume=arguments.resume)
    except (FileExistsError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    budget = Budget(arguments.limit, arguments.steps, arguments.every)
    try:
        run(plan.jobs(store.learning_rate), store, budget, lambda line: print(line, flush=True))
        code = 0
    except NetworkError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: --resume goes on", file=sys.stderr)
        code = 130
    figures = Figures(store.records)
    table = markdown(figures)
    (arguments.out / "results.md").write_text(table)
    drawn = draw(figures, arguments.out)
    print(f"\n{table}\n" + "\n".join(str(path) for path in drawn))
    return code


if __name__ == "__main__":
    sys.exit(main())
