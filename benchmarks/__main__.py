"""Run every benchmark on two ranks of this machine: ``python -m benchmarks``."""

import importlib.util
import subprocess
import sys

BENCHMARKS = {
    "torch": (
        "step_overhead",
        "step_overhead tiny",
        "sync_time",
        "sync_time tiny",
        "memory",
        "broadcast_time",
        "broadcast_time 50",
    ),
    "tensorflow": (
        "keras_step_overhead",
        "keras_sync_time",
        "keras_variables",
        "keras_memory 0.5",
        "keras_memory 0",
        "keras_broadcast_time",
        "keras_broadcast_time 50",
    ),
}


def main() -> int:
    options = ["--gloo", "--disable-cache", "-np", "2"]  # no ~/.horovod
    launcher = [sys.executable, "-m", "horovod.runner.launch", *options]
    installed = filter(importlib.util.find_spec, BENCHMARKS)
    names = [name for framework in installed for name in BENCHMARKS[framework]]
    for number, name in enumerate(names, 1):
        print(f"\n{number} of {len(names)}: benchmarks.{name}", flush=True)
        command = [*launcher, sys.executable, "-m", *f"benchmarks.{name}".split()]
        code = subprocess.run(command, check=False).returncode
        if code:
            print(f"benchmarks.{name} failed with exit code {code}", file=sys.stderr)
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
