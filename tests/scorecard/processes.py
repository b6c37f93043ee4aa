"""Workers that are killed, crash, hang or run out of memory; and whole runs that are killed, with files torn since."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
from batches import accounts, harmed, joined, rebalancer, without

from equipoise import Rebalancer
from equipoise.constraints import DriftBand, LongOnly
from equipoise.constraints.pieces import Piece
from equipoise.constraints.rules.rule import Account, Rule
from equipoise.optimizer import ProportionalCost
from equipoise.optimizer.batches.run import run, write
from scorecard._forked import in_child, measured
from scorecard.figure import Result, Row, counted

LINUX = sys.platform == "linux"
KILL, CRASH, HANG, MEMORY = 1, 2, 3, 4
SAID = {KILL: "WORKER_DIED", CRASH: "WORKER_DIED", HANG: "TIMEOUT", MEMORY: "WORKER_DIED"}


@dataclass(frozen=True)
class Attack(Rule):
    """What the column `harm` says is done to the process that reads the portfolio."""

    def pieces(self, account: Account) -> Sequence[Piece]:
        harm = account.numbers("harm", "harm").max()
        if harm == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if harm == CRASH:
            ctypes.string_at(0)
        while harm == HANG:
            pass
        if harm == MEMORY:
            import resource

            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (32 << 20),) * 2)
            held: list[bytearray] = []
            while True:
                held.append(bytearray(1 << 20))
        return ()


def attacked() -> Rebalancer:
    rules = [LongOnly(), DriftBand(relative=0.25, absolute=0.05), Attack()]
    return Rebalancer(cash="USD", costs=[ProportionalCost(0.001)], constraints=rules)


def kills_its_worker(count: int) -> Result:
    """Every fourth batch is on Dask; every third has a worker that is killed from outside, too."""
    table, missed = accounts(40), []
    for number in range(count):
        rng = Random(number)
        dask = number % 4 == 3
        kinds = [KILL, CRASH, MEMORY] if dask else [CRASH, KILL, MEMORY, HANG]
        names = rng.sample(sorted(set(table["portfolio_id"])), min(rng.randrange(1, 4), number + 1))
        culprits = {name: kinds[(number + i) % len(kinds)] for i, name in enumerate(names)}
        harm = table
        for name, kind in culprits.items():
            harm = harmed(harm, kind, name)
        options: dict[str, Any] = {"chunk": rng.choice([25, 60, 200])}
        outside = not dask and number % 3 == 2
        if not dask:
            options |= {"executor": rng.choice([1, 2]), "timeout": 2.0 if HANG in culprits.values() else None}
        said = f"batch {number}: {culprits} {options} {'Dask ' * dask}{'killed from outside ' * outside}"
        chunks = _on_dask(harm, options) if dask else _solved(harm, options, rng if outside else None)
        results = joined(chunks).results
        expected = {name: SAID[kind] for name, kind in culprits.items()}
        if results[~results["verified"]]["status"].to_dict() != expected:
            missed.append(f"{said}: {results[~results['verified']]['message'].to_dict()}")
        elif without(chunks, *culprits) != without(run(attacked().policy, table), *culprits):
            missed.append(f"{said}: other bytes")
        elif multiprocessing.active_children():
            missed.append(f"{said}: processes are left")
    return counted(missed, count)


def _solved(table: pd.DataFrame, options: dict[str, Any], rng: Random | None) -> list[Any]:
    answers = run(attacked().policy, table, progress=False, **options)
    chunks = [next(answers)] if rng else []
    if rng:  # one death by accident: later, while others work
        killer = threading.Thread(target=_kill_one, args=(rng.random(),))
        killer.start()
        chunks += answers
        killer.join()
        return chunks
    return list(answers)


def _kill_one(after: float) -> None:
    time.sleep(after)
    for child in multiprocessing.active_children()[:1]:
        child.kill()


def _on_dask(table: pd.DataFrame, options: dict[str, Any]) -> list[Any]:
    import dask
    from distributed import Client, LocalCluster

    with ExitStack() as held:
        held.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": 0}))
        cluster = LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
        client = held.enter_context(Client(held.enter_context(cluster)))
        held.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", RuntimeWarning)
        return list(run(attacked().policy, table, executor=client.get_executor(), progress=False, **options))


def goes_on_after_a_kill(count: int) -> Result:
    return measured("scorecard.processes", "killed", count)


def killed(count: int) -> list[str]:
    """A run into files with a checkpoint is killed at a random moment, its checkpoint damaged, and begun again."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = harmed(accounts(30), 4, *(f"P{i:04d}" for i in range(0, 30, 3)))
        calm, old = folder / "calm", folder / "old"
        write_all(table, calm)  # in this process, so that children find all modules loaded
        start = time.perf_counter()
        in_child(lambda: write_all(table, folder / "timed"))
        seconds = time.perf_counter() - start
        write_all(accounts(3), old)
        expected, before = content(calm), content(old)
        cases = (_killed(Random(i), folder / f"{i}", table, seconds, expected, before) for i in range(count))
        return [f"run {i}: {wrong}" for i, wrong in enumerate(cases) if wrong]


def write_all(table: pd.DataFrame, folder: Path) -> str:
    paths = {"results": folder / "results.csv", "orders": folder / "orders.parquet"}
    write(rebalancer().policy, table, chunk=10, checkpoint=folder / "kept", progress=False, **paths)
    return ""


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _killed(
    rng: Random, place: Path, table: pd.DataFrame, seconds: float, expected: dict[str, bytes], before: dict[str, bytes]
) -> str:
    place.mkdir()
    for name in ("results.csv", "orders.parquet"):
        (place / name).write_bytes(before[name])
    in_child(lambda: write_all(table, place), kill_after=rng.uniform(0, seconds))
    found = content(place)
    states = [name for name in ("results.csv", "orders.parquet") if found.get(name) == expected[name]]
    if states not in ([], ["results.csv"], ["results.csv", "orders.parquet"]):
        return f"the orders came before the results: {states}"
    if any(found.get(name) not in (expected[name], before[name]) for name in ("results.csv", "orders.parquet")):
        return "a file is neither the old nor the new one"
    damage = _damage(rng, place / "kept")
    code, said = in_child(lambda: _again(table, place))
    if code:
        return f"{damage}: the second run ended with {code}: {said[-500:]}"
    after = content(place)
    shutil.rmtree(place)
    if after.keys() != expected.keys():
        return f"{damage}: other files: {sorted(after.keys() ^ expected.keys())}"
    other = [name for name in expected if after[name] != expected[name]]
    return f"{damage}: other bytes in {other}" if other else ""


def _again(table: pd.DataFrame, place: Path) -> str:
    warnings.simplefilter("ignore", RuntimeWarning)
    return write_all(table, place)


def _damage(rng: Random, kept: Path) -> list[str]:
    """What was done to some of the files that are there."""
    paths = [path for path in sorted(kept.glob("*")) if path.suffix in (".bin", ".json")]
    done = []
    for path in rng.sample(paths, min(len(paths), rng.randrange(4))):
        data, kind = path.read_bytes(), rng.choice(["torn", "flipped", "empty", "gone", "longer"])
        at = rng.randrange(max(1, len(data)))
        flipped = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :] if data else b""
        changed = {"torn": data[:at], "flipped": flipped, "empty": b"", "longer": data + b"\0"}
        if kind == "gone":
            path.unlink()
        else:
            path.write_bytes(changed[kind])
        done.append(f"{path.name} {kind} at {at}")
    return done


ROWS = [
    Row(
        8,
        "workers killed, crashed, endless, out of memory: batches with other bytes",
        "0",
        kills_its_worker,
        1,
        60,
        LINUX,
    ),
    Row(9, "runs killed, their files torn, begun again: with other bytes", "0", goes_on_after_a_kill, 4, 100, LINUX),
]
