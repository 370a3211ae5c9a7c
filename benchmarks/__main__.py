"""Run every benchmark on two ranks of this machine: ``python -m benchmarks``."""

import subprocess
import sys

BENCHMARKS = ("step_overhead", "sync_time", "memory")


def main() -> int:
    options = ["--gloo", "--disable-cache", "-np", "2"]  # no ~/.horovod
    launcher = [sys.executable, "-m", "horovod.runner.launch", *options]
    for name in BENCHMARKS:
        command = [*launcher, sys.executable, "-m", f"benchmarks.{name}"]
        code = subprocess.run(command, check=False).returncode
        if code:
            print(f"benchmarks.{name} failed with exit code {code}", file=sys.stderr)
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
