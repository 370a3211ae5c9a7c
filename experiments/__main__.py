"""``python -m experiments TABLE``: make the trainings that a table lacks, and print it."""

import argparse
import multiprocessing
import signal
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from experiments.data.fetching import DataError
from experiments.making import make, pool_of
from experiments.plots import draw
from experiments.report import into, markdown
from experiments.store import RESULTS, Store, StoreError
from experiments.tables import SEEDS, TABLES

DOCS = Path(__file__).parent.parent / "docs"


def write_docs(store: Store, seeds: int) -> None:
    """Put all tables into docs/experiments.md, and their plots beside it."""
    page = DOCS / "experiments.md"
    tables = {name: markdown(table, store, seeds) for name, table in TABLES.items()}
    page.write_text(into(page.read_text(), tables))
    for name, table in TABLES.items():
        draw(table, store, seeds, DOCS / "images" / f"{name.replace('.', '-')}.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description="Make the trainings that a table lacks, and print the table. It can be "
        "interrupted: what is done is kept.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--processes", type=int, default=2, help="trainings at a time")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of each row")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the runs are kept")
    parser.add_argument("--show", action="store_true", help="train nothing, print what is there")
    parser.add_argument("--docs", action="store_true", help="put tables and plots into docs/")
    args = parser.parse_args()
    strange = sorted(set(args.tables) - set(TABLES))
    if strange:
        parser.error(f"there is no table {strange[0]}: {', '.join(TABLES)}")
    signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)
    try:
        store = Store(args.results)
        with pool_of(args.processes) as pool:
            for name in args.tables or TABLES:
                if not args.show:
                    make(TABLES[name], store, args.seeds, pool, args.processes)
                print(markdown(TABLES[name], store, args.seeds), flush=True)
        if args.docs:
            write_docs(store, args.seeds)
    except (DataError, StoreError) as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        print("\ninterrupted: the trainings that are done are kept", file=sys.stderr)
        sys.exit(130)
    except BrokenProcessPool:
        sys.exit("a training was killed, perhaps for want of memory; those that are done are kept")


def _end(*_: object) -> None:
    for process in multiprocessing.active_children():
        process.kill()  # or the pool would wait for the trainings that are going on
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
