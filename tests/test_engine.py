"""Batches in parallel: the same bytes whoever solves them, and whatever happens to whom."""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import batches
import numpy as np
import pandas as pd
import pytest
from batches import accounts, content, harmed, joined, rebalancer, without

from equipoise import InputError, Rebalancer
from equipoise.constraints import Custom, WeightBounds
from equipoise.constraints.pieces import Piece
from equipoise.constraints.rules.rule import Account, Rule
from equipoise.optimizer import CovarianceRisk
from equipoise.optimizer.batches import run as engine
from equipoise.optimizer.batches.chunk import empty
from equipoise.optimizer.batches.plain_tables import listed
from equipoise.optimizer.batches.progress import Progress
from equipoise.optimizer.batches.run import run, write
from equipoise.optimizer.batches.tasks import Job
from equipoise.optimizer.batches.workers import Workers
from equipoise.optimizer.problem.policy_digest import policy_digest
from equipoise.optimizer.rebalancer import solve_frame


def mixed() -> pd.DataFrame:
    """Twelve accounts, among them a blank price, ids that are no text, a blank id, and targets that miss 1."""
    table = accounts(12).astype({"portfolio_id": object, "price": object})
    table.loc[7, "price"] = None
    table.loc[10:14, "portfolio_id"] = 7
    table.loc[15:19, "portfolio_id"] = None
    table.loc[20:24, "target"] = 0.3
    table.loc[25:29, "quantity"] *= -1
    return table


@pytest.fixture(scope="module")
def expected() -> bytes:
    """By `solve_batch` itself, at once."""
    plans = rebalancer().solve_batch(mixed())
    assert plans.results["status"].value_counts().to_dict() == {"OPTIMAL": 7, "INVALID_INPUT": 5}
    return content([engine.Chunk(plans.results, plans.orders)])


@pytest.mark.parametrize("chunk", [1, 7, 30, None])
def test_the_size_of_chunks_changes_nothing(chunk: int | None, expected: bytes) -> None:
    chunks = list(run(rebalancer().policy, mixed(), chunk=chunk))
    assert len(chunks) == {1: 12, 7: 6, 30: 2, None: 1}[chunk]
    assert content(chunks) == expected


def test_neither_does_an_executor_of_threads(expected: bytes) -> None:
    with ThreadPoolExecutor(2) as pool:
        assert content(run(rebalancer().policy, mixed(), chunk=10, executor=pool)) == expected


def test_nor_tables_one_by_one_nor_their_order(expected: bytes) -> None:
    table = mixed()
    tables = [rows for _, rows in table.groupby(np.arange(len(table)) // 5)]
    assert content(run(rebalancer().policy, tables)) == expected
    assert content(run(rebalancer().policy, iter(tables), chunk=12)) == expected
    shuffled = pd.concat([tables[i] for i in np.random.default_rng(1).permutation(12)]).sample(frac=1, random_state=2)
    calm, other = (joined(run(rebalancer().policy, t, chunk=13)) for t in (table, shuffled))
    for name in calm.results.index[:1].append(calm.results.index[5:]):
        pd.testing.assert_series_equal(calm.results.loc[name], other.results.loc[name], check_exact=True)
        if name in calm.orders.index:
            pd.testing.assert_frame_equal(calm.orders.loc[name], other.orders.loc[name], check_exact=True)


def test_rules_may_name_what_any_portfolio_of_the_batch_has() -> None:
    """A label of the last account in a rule for all; an iterator, which is read only once, must be told."""
    table = accounts(6)
    table.loc[25, "asset"] = "RARE"
    policy = rebalancer(WeightBounds(upper=1.0, assets=["RARE"]), harm=False)
    for source in (table, [table[:15], table[15:]]):
        assert joined(run(policy.policy, source, chunk=5)).results["verified"].all()
    told, untold = (joined(run(policy.policy, iter([table]), universe=u)).results for u in (["RARE"], []))
    assert told["verified"].all()
    assert untold["status"].tolist() == ["INVALID_INPUT"] * 5 + ["OPTIMAL"]


@pytest.mark.slow
def test_a_worker_that_dies_costs_only_its_portfolio(tmp_path: Path) -> None:
    """P0006 ends its process; P0010's was killed by accident, and is well when it is tried again. Two processes."""
    table, policy = mixed(), rebalancer(mark=str(tmp_path / "killed"))
    calm, before = list(run(policy.policy, table)), dict(os.environ)
    chunks = list(run(policy.policy, harmed(harmed(table, 1, "P0006"), 3, "P0010"), chunk=25, executor=2))
    assert (tmp_path / "killed").exists()
    assert [len(chunk.results) for chunk in chunks] == [5, 5, 2]
    results = joined(chunks).results
    assert list(results.index) == list(joined(calm).results.index)
    assert results.loc["P0006", "status"] == "WORKER_DIED"
    assert results.loc["P0006", "message"] == "worker_died: the process that solved it ended with exit code 3"
    assert without(chunks, "P0006") == without(calm, "P0006")
    assert dict(os.environ) == before
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_worker_that_hangs_costs_only_its_portfolio(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is one for each portfolio, however many are in the chunk, which may take longer as a whole."""
    allowed, collect = [], Workers._collect

    def watched(self: Workers) -> None:
        now = time.monotonic()
        allowed.extend(worker.deadline - now for worker in self._workers if worker.deadline < float("inf"))
        collect(self)

    monkeypatch.setattr(Workers, "_collect", watched)
    table = accounts(16)
    slow = harmed(table, 6, *table["portfolio_id"])
    chunks = list(run(rebalancer().policy, harmed(slow, 2, "P0003"), executor=1, timeout=1.5))
    results = joined(chunks).results
    assert results[~results["verified"]]["status"].to_dict() == {"P0003": "TIMEOUT"}
    assert results.loc["P0003", "message"] == "timeout: no answer within 1.5 seconds"
    assert without(chunks, "P0003") == without(run(rebalancer().policy, table), "P0003")
    assert 0 < max(allowed) <= 1.5


@pytest.mark.slow
def test_a_lack_of_memory_costs_only_who_lacks_it_alone(tmp_path: Path) -> None:
    """P0003 always does; P0001 did once, perhaps because of others."""
    table, policy = accounts(4), rebalancer(mark=str(tmp_path / "lacked"))
    chunks = list(run(policy.policy, harmed(harmed(table, 7, "P0003"), 8, "P0001"), executor=1))
    results = joined(chunks).results
    assert results[~results["verified"]]["status"].to_dict() == {"P0003": "WORKER_DIED"}
    assert results.loc["P0003", "message"] == "worker_died: the process that solved it ended with too little memory"
    assert without(chunks, "P0003") == without(run(rebalancer().policy, table), "P0003")


class Breaks(Executor):
    """A pool whose only worker dies in its second task, as those of the standard library say it."""

    def __init__(self) -> None:
        self.tasks = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.tasks += 1
        future: Future[Any] = Future()
        if self.tasks == 1:
            future.set_result(fn(*args, **kwargs))
        elif self.tasks == 2:
            future.set_exception(BrokenProcessPool("a process in the pool was terminated abruptly"))
        else:
            raise BrokenProcessPool("the pool is not usable anymore")
        return future


@pytest.mark.slow
def test_a_broken_executor_is_replaced(expected: bytes) -> None:
    executor = Breaks()
    with pytest.warns(RuntimeWarning, match=r"BrokenProcessPool.*processes of our own take over"):
        chunks = list(run(rebalancer().policy, mixed(), chunk=10, executor=executor))
    assert executor.tasks > 2
    assert content(chunks) == expected


def test_what_a_chunk_cannot_survive_is_found_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    table = accounts(6)
    solved = Job.solved

    def fails(job: Job, part: Any) -> Any:
        if "P0003" in listed(dict(part)["portfolio_id"]):
            raise MemoryError("too much")
        return solved(job, part)

    calm = list(run(rebalancer().policy, table))
    monkeypatch.setattr(Job, "solved", fails)
    chunks = list(run(rebalancer().policy, table))
    assert joined(chunks).results.loc["P0003", ["status", "message"]].tolist() == [
        "UNSOLVED",
        "internal error, please report it: MemoryError: too much",
    ]
    assert without(chunks, "P0003") == without(calm, "P0003")


@pytest.mark.slow
def test_an_endless_source_is_read_as_it_is_needed() -> None:
    """By a worker with a thread for each library, as `harm` 5 sees to."""
    read = 0

    def endless() -> Iterator[pd.DataFrame]:
        nonlocal read
        while True:
            yield harmed(accounts(4, first=4 * read), 5, *(f"P{4 * read + i:04d}" for i in range(4)))
            read += 1

    chunks = run(rebalancer().policy, endless(), executor=1, chunk=20)
    seen = []
    for number in range(6):
        seen.append(next(chunks))
        assert list(seen[-1].results.index) == [f"P{4 * number + i:04d}" for i in range(4)]
        # Two chunks are under way at most; that one is whole is known when the next table is there.
        assert read <= number + 4
    chunks.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()
    calm = run(rebalancer().policy, [accounts(4, first=4 * i) for i in range(6)], chunk=20)
    assert content(seen) == content(calm)


def test_what_cannot_be_sent_is_refused_at_once() -> None:
    bad = rebalancer(Custom(lambda t: t.trades[0] <= 1), harm=False)
    with ThreadPoolExecutor(1) as pool:
        for executor in (2, pool):
            with pytest.raises(InputError, match=r"cannot be sent to another process.*function of a module"):
                next(run(bad.policy, accounts(1), executor=executor))


@pytest.mark.slow
def test_what_cannot_be_loaded_by_a_worker_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that is there in a session, but not in the module that it says it is of."""
    monkeypatch.setattr(batches, "gone", _gone, raising=False)
    monkeypatch.setattr(_gone, "__module__", "batches")
    with pytest.raises(InputError, match=r"cannot be sent.*AttributeError: .*gone"):
        next(run(rebalancer(Custom(_gone), harm=False).policy, accounts(1), executor=1))


def _gone(trade: Any) -> Any:
    return trade.trades[0] <= 1


_gone.__qualname__ = "gone"


def test_workers_that_never_start_are_no_portfolios_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a script that starts them again and again, for want of a guard."""
    monkeypatch.setattr("equipoise.optimizer.batches.workers._work", os.abort)
    with pytest.raises(InputError, match=r'exit code 1.*needs the line `if __name__ == "__main__":`'):
        next(run(rebalancer().policy, accounts(2), executor=2))
    assert not multiprocessing.active_children()


def test_options_that_there_are_not_are_refused_when_called(tmp_path: Path) -> None:
    policy, table = rebalancer(), accounts(1)
    path = tmp_path / "new" / "orders.csv"
    for call in (
        lambda: run(policy.policy, table, assets=table),  # type: ignore[call-arg]
        lambda: policy.stream(table, assets=table),  # type: ignore[call-arg]
        lambda: policy.solve_batch(table, assets=table),  # type: ignore[call-arg]
        lambda: write(policy.policy, table, orders=path, assets=table),
        lambda: policy.write_batch(table, orders=path, assets=table),  # type: ignore[call-arg]
    ):
        with pytest.raises(
            InputError, match=r"column 'assets': is no option.*there are allocate, checkpoint, chunk, ef"
        ):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"executor": 0}, "column 'executor', value 0: must be at least 1"),
        ({"executor": True}, "must be a finite number"),
        ({"executor": "two"}, "must be None, a number of processes, or a concurrent.futures.Executor"),
        ({"chunk": 0}, "must be a whole number of rows"),
        ({"timeout": 0, "executor": 1}, "must be above 0"),
        ({"timeout": 1.0}, "needs processes of our own: executor=1 or more"),
    ],
)
def test_options_that_do_not_fit_are_refused_when_called(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        run(rebalancer().policy, accounts(1), **options)


# Checkpoints


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    """SIGKILL to the parent: its workers end too, even one that hangs; a second run solves only what is left."""
    script, mark = tmp_path / "script.py", tmp_path / "well"
    script.write_text(
        "import multiprocessing\nfrom batches import accounts, harmed, rebalancer\n"
        "from equipoise.optimizer.batches.run import run\n"
        "if __name__ == '__main__':\n"
        "    table = harmed(accounts(24), 9, 'P0006')\n"
        f"    policy = rebalancer(mark={str(mark)!r}).policy\n"
        "    for _ in run(policy, table, executor=1, chunk=10, checkpoint='kept'):\n"
        "        print(*(p.pid for p in multiprocessing.active_children()), flush=True)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, str(script)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        workers = [int(pid) for pid in child.stdout.readline().split()]
        child.stdout.readline()
        assert _comes(lambda: mark.with_suffix(".hangs").exists())
        child.kill()
    assert workers
    assert _ended(workers)
    kept = sorted((tmp_path / "kept").glob("chunk-*.bin"))
    assert 2 <= len(kept) < 12
    before = {file: file.stat().st_mtime_ns for file in kept}
    mark.touch()
    policy, table = rebalancer(mark=str(mark)), harmed(accounts(24), 9, "P0006")
    again = list(run(policy.policy, table, chunk=10, checkpoint=tmp_path / "kept"))
    assert {file: file.stat().st_mtime_ns for file in kept} == before
    calm = rebalancer().solve_batch(accounts(24))
    assert content(again) == content([engine.Chunk(calm.results, calm.orders)])


def _comes(what: Callable[[], bool]) -> bool:
    for _ in range(600):
        if what():
            return True
        time.sleep(0.1)
    return False


def _ended(pids: list[int]) -> bool:
    def ended() -> bool:
        alive = []
        for pid in pids:
            try:
                os.kill(pid, 0)
                state = Path(f"/proc/{pid}/stat")
                if not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z":
                    alive.append(pid)
            except OSError:
                continue
        return not alive

    return _comes(ended)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    folder = tmp_path / "kept"
    list(run(rebalancer().policy, accounts(4), chunk=10, checkpoint=folder))
    assert sorted(path.name for path in folder.iterdir()) == [
        "chunk-00000000.bin",
        "chunk-00000001.bin",
        "lock",
        "run.json",
    ]
    return folder


@pytest.mark.parametrize("damage", ["torn", "empty", "changed", "missing"])
def test_a_damaged_chunk_is_solved_again(damage: str, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kept / "chunk-00000001.bin"
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        middle = len(whole) // 2
        changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        path.write_bytes({"torn": whole[:middle], "empty": b"", "changed": changed}[damage])
    calls = []
    solved = Job.solved
    monkeypatch.setattr(Job, "solved", lambda *given: calls.append(1) or solved(*given))
    options = {"chunk": 10, "checkpoint": kept}
    if damage == "missing":
        chunks = list(run(rebalancer().policy, accounts(4), **options))
    else:
        with pytest.warns(RuntimeWarning, match=r"chunk-00000001\.bin was torn or changed"):
            chunks = list(run(rebalancer().policy, accounts(4), **options))
    assert len(calls) == 1
    assert content(chunks) == content(run(rebalancer().policy, accounts(4)))
    assert path.read_bytes() == whole


def test_a_checkpoint_of_another_run_is_refused(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(why: str, policy: Rebalancer | None = None, table: pd.DataFrame | None = None, chunk: int = 10) -> None:
        with pytest.raises(InputError, match=f"kept holds another run: {why}.*; name another directory"):
            list(
                run(
                    (policy or rebalancer()).policy,
                    accounts(4) if table is None else table,
                    chunk=chunk,
                    checkpoint=kept,
                )
            )

    before = {path: path.read_bytes() for path in kept.iterdir()}
    refused(r"the policy \(cash, risk, costs, rules, aversion or horizon\) is another", rebalancer(aversion=9.0))
    refused("the size of chunks is another: 10 there, 20 here", chunk=20)
    with pytest.raises(InputError, match="the effort for whole-lot plans, or the solver, is another"):
        list(run(rebalancer().policy, accounts(4), chunk=10, checkpoint=kept, effort=2))
    table = accounts(4)
    refused("the assets that rules may name is another", table=table.replace({"asset": {"A01": "B01"}}))
    table.loc[13, "quantity"] = np.nextafter(table.loc[13, "quantity"], 0)
    refused(r"the portfolios of chunk-00000001\.bin are not those of this run", table=table)
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0" if name == "scipy" else version(name))
    refused(f"it was begun with scipy {version('scipy')}, here is 0.0")
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in kept.iterdir()} == before
    (kept / "run.json").write_text(json.dumps([]))
    refused(r"chunk-00000000\.bin is of another policy, another size of chunks or other versions", chunk=20)
    (kept / "notes.txt").write_text("mine")
    (kept / "run.json").unlink()
    refused(r"it is no checkpoint, but has notes\.txt in it")


@pytest.mark.parametrize("damage", ["torn", "changed", "missing"])
def test_a_damaged_identity_is_written_again(damage: str, kept: Path) -> None:
    """What the chunks say of their run is enough; the file is for people, and for the message of a refusal."""
    path = kept / "run.json"
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"torn": whole[:99], "changed": whole.replace(b'"chunk": 10', b'"chunk": 11')}[damage])
    with nullcontext() if damage == "missing" else pytest.warns(RuntimeWarning, match="run.json was torn or changed"):
        chunks = list(run(rebalancer().policy, accounts(4), chunk=10, checkpoint=kept))
    assert content(chunks) == content(run(rebalancer().policy, accounts(4)))
    assert path.read_bytes() == whole


def test_a_run_that_was_killed_before_it_said_what_it_is(kept: Path) -> None:
    for path in kept.glob("*.*"):
        path.unlink()
    (kept / f".run.json.{'0' * 32}.part").write_text("{")
    assert len(list(run(rebalancer().policy, accounts(4), chunk=10, checkpoint=kept))) == 2
    assert not list(kept.glob("*.part"))


def test_what_is_no_checkpoint_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text("mine")
    with pytest.raises(InputError, match=r"it is no checkpoint, but has report\.txt in it"):
        list(run(rebalancer().policy, accounts(1), checkpoint=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["report.txt"]


def test_two_runs_do_not_share_a_checkpoint(kept: Path) -> None:
    first = run(rebalancer().policy, accounts(4), chunk=10, checkpoint=kept)
    next(first)
    with pytest.raises(InputError, match="in use by another run"):
        next(run(rebalancer().policy, accounts(4), chunk=10, checkpoint=kept))
    first.close()  # type: ignore[attr-defined]
    assert len(list(run(rebalancer().policy, accounts(4), chunk=10, checkpoint=kept))) == 2


def test_where_the_system_has_no_locks_a_file_is_one(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equipoise.optimizer.batches.whole_files.lock", lambda file: False)
    first = run(rebalancer().policy, accounts(4), chunk=10, checkpoint=kept)
    next(first)
    with pytest.raises(InputError, match=r"in use by another run.*if none is running, remove locked"):
        next(run(rebalancer().policy, accounts(4), chunk=10, checkpoint=kept))
    first.close()  # type: ignore[attr-defined]
    assert len(list(run(rebalancer().policy, accounts(4), chunk=10, checkpoint=kept))) == 2


LIMIT = 1.0


def limited(trade: Any) -> Any:
    return trade.weights <= LIMIT


def _made(limit: float) -> Any:
    return lambda trade: trade.weights <= limit


class Capped(Rule):
    cap: ClassVar[float] = 0.5

    def pieces(self, account: Account) -> Sequence[Piece]:
        return WeightBounds(upper=self.cap).pieces(account)


class CappedOtherwise(Rule):
    cap: ClassVar[float] = 0.5

    def pieces(self, account: Account) -> Sequence[Piece]:
        return WeightBounds(upper=-self.cap).pieces(account)


def _inherited(kind: type, **constants: Any) -> Any:
    return type(kind.__name__, (kind,), constants)


def test_the_digest_of_a_policy_sees_what_it_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers, arrays, the code of functions, what they close over and the globals that they name."""
    cov = np.diag([0.04, 0.09])

    def digest(matrix: Any = cov, **changes: Any) -> str:
        rules = changes.pop("rules", ())
        risk = CovarianceRisk(matrix, assets=["A", "B"])
        return policy_digest(Rebalancer(cash="USD", risk=risk, constraints=rules, **changes).policy)

    def custom(build: Any) -> str:
        return digest(rules=[Custom(build)])

    policies = [
        digest(),
        digest(aversion=np.nextafter(10.0, 11.0)),
        digest(horizon=2.0),
        digest(np.diag([0.04, np.nextafter(0.09, 1)])),
        digest(rules=[WeightBounds(0.0, 0.5)]),
        digest(rules=[WeightBounds(0.0, {"A": 0.5, "B": 1.0})]),
        custom(_made(0.5)),
        custom(_made(0.6)),
        custom(lambda t: t.weights <= 0.5),
        custom(lambda t: t.weights <= 0.6),
        custom(lambda t: t.weights >= 0.5),
        custom(limited),
    ]
    policies += [digest(rules=[kind()]) for kind in (Capped, CappedOtherwise, _inherited(Capped, cap=0.6))]
    monkeypatch.setitem(globals(), "LIMIT", 0.9)
    policies.append(custom(limited))
    assert len(set(policies)) == len(policies)
    assert digest(rules=[WeightBounds(0.0, {"B": 1.0, "A": 0.5})]) == policies[5]
    assert custom(_made(0.5)) == policies[6]


@pytest.mark.slow
def test_the_digest_is_the_same_in_another_process() -> None:
    """Sets and hashes differ from process to process."""
    code = (
        "from equipoise import Rebalancer; from equipoise.constraints import WeightBounds; "
        "from equipoise.optimizer.problem.policy_digest import policy_digest as digest; "
        "rule = WeightBounds(upper=1.0, assets=frozenset(['A', 'B', 'C', 'D'])); "
        "print(digest(Rebalancer(cash='USD', constraints=[rule])))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


# Files, frames and progress


@pytest.mark.slow
def test_files_have_the_same_bytes_whatever_the_chunks(tmp_path: Path) -> None:
    table = mixed()
    for i, options in enumerate([{}, {"chunk": 10}, {"chunk": 6, "checkpoint": tmp_path / "kept"}]):
        for suffix in ("parquet", "csv"):
            paths = {what: tmp_path / f"{i}" / f"{what}.{suffix}" for what in ("results", "orders")}
            summary = write(rebalancer().policy, table, **paths, **options, progress=False)
    assert summary.statuses == {"INVALID_INPUT": 5, "OPTIMAL": 7}
    assert summary.portfolios == 12
    plans = rebalancer().solve_batch(table)
    assert summary.orders == len(plans.orders)
    for name in ("results.parquet", "orders.parquet", "results.csv", "orders.csv"):
        assert len({(tmp_path / f"{i}" / name).read_bytes() for i in range(3)}) == 1
        assert [path.name for path in (tmp_path / "0").iterdir() if path.name.startswith(".")] == []
    orders = pd.read_parquet(tmp_path / "0" / "orders.parquet")
    assert orders["quantity"].tolist() == plans.orders["quantity"].tolist()
    results = pd.read_parquet(tmp_path / "0" / "results.parquet").set_index("portfolio_id")
    assert results.loc["P0000", "objective"] == plans["P0000"].objective
    assert results["nav"].isna().sum() == plans.results["nav"].isna().sum()
    text = pd.read_csv(tmp_path / "0" / "orders.csv")
    assert text["quantity"].tolist() == plans.orders["quantity"].tolist()


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    tables = iter([accounts(2), accounts(2)])
    with pytest.raises(InputError, match=r"portfolio 'P0000'.*comes again"):
        write(rebalancer().policy, tables, results=tmp_path / "r.csv", orders=tmp_path / "o.parquet", chunk=1)
    with pytest.raises(InputError, match=r"must end in one of \.parquet"):
        write(rebalancer().policy, accounts(2), results=tmp_path / "r.csv", orders=tmp_path / "o.xlsx")
    assert list(tmp_path.iterdir()) == []


def test_bad_usage_touches_no_file(tmp_path: Path) -> None:
    results, orders, holdings = tmp_path / "r.csv", tmp_path / "o.csv", tmp_path / "holdings.parquet"
    accounts(2).to_parquet(holdings)
    write(rebalancer().policy, holdings, results=results, orders=orders)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def refused(why: str, source: Any = holdings, **paths: Path) -> None:
        with pytest.raises(InputError, match=why):
            write(rebalancer().policy, source, **{"results": results, "orders": orders, **paths})
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

    refused("none of 2 portfolios can be read.*'P0000'.*'price'", accounts(2).drop(columns="price"))
    refused(r"o\.csv: is read from, or written to, already", results=orders)
    refused(r"o\.csv: is read from, or written to, already", results=tmp_path / ".." / tmp_path.name / "o.csv")
    with pytest.raises(InputError, match=r"holdings\.parquet: is read from, or written to, already"):
        write(rebalancer().policy, str(holdings), results=holdings)
    refused("must end in one of", orders=tmp_path / "o.json")
    refused("cannot be read", tmp_path / "nothing.parquet")


def test_a_frame_from_a_frame() -> None:
    table = mixed()
    plans = rebalancer().solve_batch(table)
    results, orders = solve_frame(rebalancer(), table), solve_frame(rebalancer(), table, returns="orders")
    assert list(results.columns) == ["portfolio_id", *empty().results.columns]
    assert results["gap"].tolist()[0] == plans["P0000"].gap
    assert orders["notional"].tolist() == plans.orders["notional"].tolist()
    nothing = table[table["portfolio_id"].isna()]
    for returns, like in (("results", results), ("orders", orders)):
        for rows in (nothing, nothing[:0]):
            assert solve_frame(rebalancer(), rows, returns=returns).dtypes.equals(like.dtypes)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a batch needs a column portfolio_id"):
        solve_frame(rebalancer(), table.drop(columns="portfolio_id"))


def test_progress_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with Progress(True, 1000, clock=lambda: now) as progress:
        progress.add(300, solved=False)
        for _ in range(6):
            now += 2.0
            progress.add(100)
    assert capsys.readouterr().err.splitlines() == [
        "equipoise: 600 of 1,000 portfolios, 50 a second, 0:00:08 left",
        "equipoise: 900 of 1,000 portfolios, 50 a second, 0:00:02 left",
    ]
    with Progress(None, 10), Progress(False, 10) as silent:
        silent.add(10)
    assert capsys.readouterr().err == ""


def test_progress_as_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    list(run(rebalancer().policy, accounts(3), chunk=5))
    assert "3/3" in capsys.readouterr().err
    list(run(rebalancer().policy, accounts(3), progress=False))
    assert capsys.readouterr().err == ""
