"""What a process keeps of what it has solved."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from batches import accounts, rebalancer

from equipoise.constraints import LotSize
from scorecard._forked import THREADS
from scorecard.figure import Result, Row

ALLOWED = 5.0  # MB
BATCH = 250  # portfolios of a batch


def keeps_memory(count: int) -> Result:
    """A third each: portfolios one by one, the same in whole lots, and in batches, each after as much to get warm."""
    code = f"import json; from scorecard.memory import grown; print(json.dumps(grown({count})))"
    environment = {**os.environ, **THREADS, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    if run.returncode:
        return Result(f"ended with {run.returncode}", False, (run.stderr[-2000:],))
    grew: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    said = ", ".join(f"{kind} {size:+.1f} MB" for kind, size in grew.items())
    return Result(f"{said} over {count:,}", sum(grew.values()) <= ALLOWED)


def grown(count: int) -> dict[str, float]:
    """How much the process grew by, in MB, for each kind of solve."""
    convex, lots = rebalancer(harm=False), rebalancer(LotSize(1), harm=False)
    table = accounts(BATCH, 8)
    tables = [rows.drop(columns="portfolio_id").set_index("asset") for _, rows in table.groupby("portfolio_id")]

    def again(solve: Callable[[pd.DataFrame], object]) -> Callable[[int], None]:
        def work(times: int) -> None:
            for i in range(times):
                solve(tables[i % BATCH])

        return work

    def batches(times: int) -> None:
        for _ in range(-(-times // BATCH)):
            plans = convex.solve_batch(table)
            assert len(plans.results) == len(plans.orders.groupby(level=0)) == BATCH

    kinds = {"single": again(convex.solve), "whole lots": again(lots.solve), "batches": batches}
    grew = {}
    for kind, work in kinds.items():
        work(max(50, count // 100))  # caches and arenas that are filled once
        gc.collect()
        before = _resident()
        work(count // 3)
        gc.collect()
        grew[kind] = _resident() - before
    return grew


def _resident() -> float:
    """MB of memory that the process has now."""
    import resource

    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


LINUX = sys.platform == "linux"
ROWS = [
    Row(13, "memory that a process keeps, single, in lots, in batches", "<= 5 MB", keeps_memory, 150, 20_000, LINUX)
]
