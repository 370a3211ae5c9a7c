"""Run a command under horovodrun on hosts within this machine, joined by links of a given rate.

``python -m benchmarks.network --hosts 2 --rate 1gbit -- python -m benchmarks.sync_time``
"""

import argparse
import sys

from benchmarks.network.network import Network
from benchmarks.network.rates import UNSHAPED
from benchmarks.network.tools import NetworkError


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.network", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--hosts", type=int, default=2, help="how many, one rank on each")
    parser.add_argument(
        "--rate", default=UNSHAPED, help=f"of each link: {UNSHAPED} (the default), 1gbit, 100mbit"
    )
    parser.add_argument("command", nargs="+", help="what to run, after --")
    arguments = parser.parse_args()
    try:
        network = Network(arguments.hosts, arguments.rate)
    except ValueError as error:
        parser.error(str(error))
    try:
        with network:
            return network.show(arguments.command)
    except NetworkError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
