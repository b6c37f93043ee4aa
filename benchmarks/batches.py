"""Batches from Parquet to Parquet: time, memory, and what a second process brings.

    python benchmarks/batches.py [--portfolios 100000] [--assets 20] [--factors 3] [--executors 0 1 2] [--compiled]

The portfolios of `solvers.py` (drifted long-only holdings, factor risk, 10 bp costs paid from the cash, 5/25 bands),
written to a Parquet file of a long table, and rebalanced with `write_batch` into two more: results and orders. For each
of `--executors` (0: this process alone), in a fresh process: seconds from file to files, the largest memory of the
parent and of any worker, and the digest of the files, which must be the same for all.

Then processor time, which another's work on the machine disturbs less than seconds: microseconds a portfolio of the
parent and of the workers together, from the difference between this file and a fifth of it, so that starting processes
and loading libraries do not count. The speed-up of k workers is what one process takes alone, over the parent's time
plus a k-th of the workers': as if the parent never worked beside them. Start it with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from solvers import batch

PART = 5_000  # portfolios written at a time
MEGABYTE = 1024  # ru_maxrss counts in kilobytes


def holdings(path: Path, portfolios: int, assets: int, seed: int) -> None:
    """The long table of that many portfolios, part by part."""
    writer = None
    for first in range(0, portfolios, PART):
        _, table = batch(assets, 0, min(PART, portfolios - first), seed + first, False)
        numbers = np.repeat(np.arange(first, first + table["portfolio_id"].nunique()), assets + 1)
        table = table.assign(portfolio_id=pd.Series(numbers).map("P{:08d}".format)).drop(columns="group")
        part = pa.Table.from_pandas(table, preserve_index=False)
        writer = writer or pq.ParquetWriter(path, part.schema)
        writer.write_table(part)
    assert writer is not None
    writer.close()


def run(folder: Path, args: argparse.Namespace) -> dict[str, object]:
    """Both files, in this process."""
    rebalancer, _ = batch(args.assets, args.factors, 1, args.seed, args.compiled)
    files = {name: folder / f"{name}.parquet" for name in ("results", "orders")}
    used, counts = [processor()], []
    for name in ("part", "holdings"):
        began = time.perf_counter()
        source = folder / f"{name}.parquet"
        summary = rebalancer.write_batch(source, **files, executor=args.run or None, progress=False)
        seconds = time.perf_counter() - began
        used.append(processor())
        counts.append(summary.portfolios)
    part, whole = np.diff(used, axis=0)
    parent, workers = 1e6 * (whole - part) / (counts[1] - counts[0])
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files.values())).hexdigest()
    return {
        "seconds": seconds,
        "orders": summary.orders,
        "statuses": summary.statuses,
        "parent": parent,
        "workers": workers,
        "parent_mb": own.ru_maxrss / MEGABYTE,
        "worker_mb": others.ru_maxrss / MEGABYTE,
        "digest": digest[:12],
    }


def processor() -> list[float]:
    """Processor seconds of this process, and of those that it started and that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return [each.ru_utime + each.ru_stime for each in used]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portfolios", type=int, default=100_000)
    parser.add_argument("--assets", type=int, default=20)
    parser.add_argument("--factors", type=int, default=3)
    parser.add_argument("--executors", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compiled", action="store_true", help="Newton's iteration as machine code (numba)")
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run is not None:
        print(json.dumps(run(Path(args.folder), args)))
        return
    with TemporaryDirectory() as place:
        path = Path(place, "holdings.parquet")
        holdings(path, args.portfolios, args.assets, args.seed)
        holdings(path.with_name("part.parquet"), args.portfolios // 5, args.assets, args.seed)
        print(f"{args.portfolios:,} portfolios of {args.assets} assets and cash, {path.stat().st_size / 1e6:.0f} MB")
        alone = None
        for executor in args.executors:
            command = [sys.executable, __file__, *sys.argv[1:], "--run", str(executor), "--folder", place]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(
                f"executor={executor or None}: {found['seconds']:.1f} s; at most {found['parent_mb']:.0f} MB in the "
                f"parent, {found['worker_mb']:.0f} MB in a worker; {found['orders']:,} orders, {found['statuses']}, "
                f"files {found['digest']}\n  processor time a portfolio: {found['parent']:.1f} µs in the parent, "
                f"{found['workers']:.1f} µs in workers",
                flush=True,
            )
            if not executor:
                alone = found["parent"]
            elif alone is not None:
                ratio = alone / (found["parent"] + found["workers"] / executor)
                print(f"  speed-up of {executor} worker{'s' * (executor > 1)}: {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
