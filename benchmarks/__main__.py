"""python -m benchmarks [--quick]: all benchmarks one after the other, then the tables of docs/benchmarks.md."""

from __future__ import annotations

import subprocess
import sys

from benchmarks import record

ALL = ("host_time", "lookup", "triton_launch", "tuning", "cpu")


def main() -> int:
    """Runs each in a process of its own, so that none inherits another's threads, caches or settings."""
    for name in ALL:
        print(f"\n== benchmarks.{name}", flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]], cwd=record.ROOT, check=False)
        if done.returncode:
            return done.returncode
    if "--quick" in sys.argv[1:]:
        return 0
    return subprocess.run([sys.executable, "-m", "benchmarks.tables"], cwd=record.ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
