"""What each rank of a job runs: ``python -m benchmarks.contenders.worker FOLDER``.

The folder has the job in job.json, and gets each rank's result.
"""

import faulthandler
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from benchmarks.contenders.measures import Bench
from benchmarks.contenders.place import Place
from benchmarks.contenders.protocol import CannotRunError, Setting
from benchmarks.contenders.registry import CONTENDERS
from benchmarks.contenders.works import work as work_of


def main() -> int:
    folder = Path(sys.argv[1])
    told = json.loads((folder / "job.json").read_text())
    faulthandler.dump_traceback_later(told["limit"], exit=True)  # also where a library hangs
    rank, ranks = int(os.environ["HOROVOD_RANK"]), int(os.environ["HOROVOD_SIZE"])
    place = Place(folder, rank, ranks)
    try:
        result = run(told, place, rank, ranks)
    except CannotRunError as error:
        place.report({"cannot": str(error)})
        place.meet()  # a rank that ended early would end the others before they could report
        return 0
    except Exception:
        place.report({"error": traceback.format_exc()})
        return 1
    place.report(result)
    place.meet()
    return 0


def run(told: dict[str, Any], place: Place, rank: int, ranks: int) -> dict[str, Any]:
    """Measure one contender.

    Raises:
        CannotRunError: it cannot run here.
    """
    work = work_of(told["work"])
    setting = Setting(
        rank=rank,
        ranks=ranks,
        period=told["period"],
        lr=told["lr"],
        seed=told["seed"],
        address=os.environ["HOROVOD_GLOO_RENDEZVOUS_ADDR"],  # horovodrun's, which is at rank 0
    )
    contender = CONTENDERS[told["contender"]].make(work, setting)
    bench = Bench(contender, work, setting, place, os.environ["HOROVOD_GLOO_IFACE"])
    if told["measure"] == "speed":
        return bench.speed()
    if told["measure"] == "sync":
        return bench.sync(told["rounds"])
    return bench.learn(told["steps"], told["every"])


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # some contenders have threads that would not end
