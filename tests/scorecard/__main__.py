"""Print the scorecard.

    python -m tests.scorecard                    every figure at its quick size
    python -m tests.scorecard --full             at its full size (hours)
    python -m tests.scorecard --rows 1 3         some of them
    python -m tests.scorecard --rows 1 --count 500

The head says on what it was measured. Exit code 1 if a target is missed; what missed it is listed below its row.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `scorecard` and its neighbours, as in the suite

from scorecard.figure import rows

PACKAGES = ("numpy", "scipy", "pandas", "cvxpy", "clarabel", "numba", "pyarrow", "distributed")


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor()


def head() -> str:
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    chosen = {k: v for k, v in os.environ.items() if k.startswith(("OPENBLAS_", "OMP_", "NPY_", "NUMBA_"))}
    machine = f"{processor()}, {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    return "\n".join([machine, ", ".join(versions), *(f"{name}={value}" for name, value in sorted(chosen.items()))])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rows", type=int, nargs="+", default=[])
    parser.add_argument("--count", type=int)
    args = parser.parse_args()
    print(head())
    kept = True
    for row in rows():
        if args.rows and row.number not in args.rows:
            continue
        count = args.count or (row.full if args.full else row.quick)
        start = time.perf_counter()
        result = row.measure(count)
        seconds = time.perf_counter() - start
        mark = "kept" if result.kept else "MISSED"
        print(f"{row.number:3} | {row.figure} | {row.target} | {result.said} | {mark} | {seconds:.1f} s", flush=True)
        for case in result.missed:
            print(f"      {case}")
        kept = kept and result.kept
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
