"""From Parquet to Parquet: who reads, who encodes, and that the files have the same bytes whoever does."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batches import accounts, content, harmed, rebalancer
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise import InputError
from equipoise.optimizer.batches import output_files
from equipoise.optimizer.batches.arrow import close
from equipoise.optimizer.batches.checkpoint import Checkpoint
from equipoise.optimizer.batches.output_files import Grouping
from equipoise.optimizer.batches.parquet_footer import Footer, row_group
from equipoise.optimizer.batches.plain_tables import decode
from equipoise.optimizer.batches.run import run, write
from equipoise.optimizer.batches.sources import FileRows, open_stream

N = 5  # assets of an account


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of 20 rows of the source, four accounts; of results at least six accounts."""
    monkeypatch.setattr(output_files, "GROUP", 20)
    monkeypatch.setattr(output_files, "LEAST", 6)


def holdings(folder: Path, count: int = 18, group: int = 37) -> Path:
    """Accounts in a file; some that trade nothing, one that cannot be read; they span row groups."""
    table = accounts(count)
    held = table["quantity"] * table["price"]
    calm = slice(N, 3 * N - 1)
    table.loc[calm, "target"] = held.loc[calm] / held.loc[calm].groupby(table["portfolio_id"]).transform("sum")
    table.loc[7 * N, "price"] = np.nan
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), folder / "h.parquet", row_group_size=group)
    return folder / "h.parquet"


def written(source: Any, folder: Path, kind: str = "parquet", **options: Any) -> list[bytes]:
    paths = {what: folder / f"{what}.{kind}" for what in ("results", "orders")}
    write(rebalancer().policy, source, **paths, progress=False, **options)
    return [path.read_bytes() for path in paths.values()]


# Files joined from row groups


def test_row_groups_written_apart_are_one_file(tmp_path: Path) -> None:
    """The parts of the table, whole and group by group; more groups than the short form of a list has room for."""
    table = pa.table(
        {
            "number": pa.array([*range(3999), None], pa.int64()),
            "price": np.random.default_rng(1).random(4000),
            "text": [f"T{i % 7}" for i in range(4000)],
            "flag": [i % 3 == 0 for i in range(4000)],
        }
    )

    def file(part: pa.Table) -> bytes:
        out = pa.BufferOutputStream()
        pq.write_table(part, out, row_group_size=len(part) or None)
        return bytes(out.getvalue())

    edges = [0, 1, 900, *range(1000, 4000, 150), 4000]
    path = tmp_path / "joined.parquet"
    footer = Footer(file(table[:0]))
    with path.open("wb") as out:
        out.write(b"PAR1")
        for first, last in pairwise(edges):
            group = row_group(file(table[first:last]), last - first)
            footer.add(pickle.loads(pickle.dumps(group)), out.tell())
            out.write(group.pages)
        out.write(footer.end())
    assert pq.read_table(path).equals(table)
    joined = pq.ParquetFile(path)
    assert joined.metadata.num_rows == 4000
    assert [joined.metadata.row_group(i).num_rows for i in range(len(edges) - 1)] == np.diff(edges).tolist()
    for i in reversed(range(len(edges) - 1)):
        assert joined.read_row_group(i).equals(table[edges[i] : edges[i + 1]])
    found = pq.read_table(path, filters=[("number", ">=", 3990)])  # by the statistics of the groups
    assert found["number"].to_pylist() == list(range(3990, 3999))


@settings(max_examples=25)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=30),
    sizes=st.lists(st.integers(1, 90), min_size=2, max_size=2),
    what=st.sampled_from(["results", "orders"]),
)
def test_row_groups_depend_on_the_portfolios_alone(counts: list[int], sizes: list[int], what: Any) -> None:
    """As soon as there are 20 rows a group ends, one of results not before its sixth portfolio."""
    wanted, rows, portfolios = [], 0, 0
    for i, count in enumerate(counts):
        rows, portfolios = rows + count, portfolios + 1
        if rows >= 20:
            rows = 0
            if what == "orders" or portfolios >= 6:
                wanted.append(i + 1)
                portfolios = 0
    table = pd.DataFrame({"portfolio_id": np.repeat([f"P{i}" for i in range(len(counts))], counts), "asset": "A"})
    for size in sizes:
        grouping, ends, first = Grouping(what), [], 0
        for _, edges in open_stream(table).chunks(size):
            groups = grouping.add(edges)
            assert groups.begins == (first == max([0, *ends]))
            ends += [first + end for end in groups.ends]
            first += len(edges) - 1
        assert ends == wanted


# The rows of a file


def test_rows_are_read_in_any_order(tmp_path: Path) -> None:
    path = holdings(tmp_path)
    table = pd.read_parquet(path)
    [(whole, _)] = open_stream(path).chunks(1000)
    assert isinstance(whole, FileRows)
    for first, last in [(0, 5), (3, 40), (40, 41), (38, 74), (0, 90), (80, 90), (2, 3)]:
        found = decode(whole.part(first, last).table())
        pd.testing.assert_frame_equal(found, table.iloc[first:last].reset_index(drop=True), check_dtype=False)
    close()


def test_a_file_that_changes_while_it_is_read_ends_the_run(tmp_path: Path) -> None:
    path = holdings(tmp_path)
    before = path.read_bytes()
    for change in (lambda: path.write_bytes(before + b"\0"), lambda: os.utime(path, ns=(1, 1)), path.unlink):
        path.write_bytes(before)
        with ThreadPoolExecutor(1) as pool:
            for executor in (None, pool):
                path.write_bytes(before)
                chunks = run(rebalancer().policy, path, chunk=10, executor=executor)
                next(chunks)
                change()
                with pytest.raises(InputError, match=r"h\.parquet: changed while it was read"):
                    list(chunks)


# Who does what


def test_files_have_the_same_bytes_whoever_encodes_them(tmp_path: Path) -> None:
    """Row groups of a chunk and chunks of a row group, in this process and in others' threads, by value and by file."""
    path = holdings(tmp_path)
    expected = written(path, tmp_path)
    tables = rebalancer().solve_batch(pd.read_parquet(path))
    assert tables.results["status"].value_counts().to_dict() == {"OPTIMAL": 15, "NO_TRADE": 2, "INVALID_INPUT": 1}
    found = {what: pd.read_parquet(tmp_path / f"{what}.parquet") for what in ("results", "orders")}
    for what, table in (("results", tables.results), ("orders", tables.orders)):
        assert found[what]["cost"].tolist() == table["cost"].tolist()
        assert found[what]["portfolio_id"].tolist() == table.index.get_level_values("portfolio_id").tolist()
    results, orders = (pq.ParquetFile(tmp_path / f"{what}.parquet").metadata for what in found)
    assert [results.row_group(i).num_rows for i in range(results.num_row_groups)] == [8, 8, 2]
    assert orders.num_row_groups == 5
    assert written(path, tmp_path, chunk=33) == expected
    assert written(pd.read_parquet(path), tmp_path, chunk=13) == expected
    with ThreadPoolExecutor(2) as pool:
        assert written(path, tmp_path, chunk=20, executor=pool) == expected
        assert written(path, tmp_path, "csv", chunk=33, executor=pool) == written(path, tmp_path, "csv")


class Elsewhere(Executor):
    """A machine on which the paths of this one lead nowhere."""

    def __init__(self) -> None:
        self.by_value = self.by_reference = 0

    def submit(self, fn: Any, /, job: Any, task: Any, **_: Any) -> Any:
        future: Future[Any] = Future()
        if isinstance(task.rows, FileRows):
            self.by_reference += 1
            task = replace(task, rows=task.rows._replace(path="/not there/h.parquet"))
        else:
            self.by_value += 1
        try:
            future.set_result(pickle.loads(pickle.dumps(fn(job, task))))
        except Exception as error:
            future.set_exception(pickle.loads(pickle.dumps(error)))
        return future


def test_who_does_not_see_the_files_is_sent_the_rows(tmp_path: Path) -> None:
    path, executor = holdings(tmp_path), Elsewhere()
    expected = written(path, tmp_path)
    assert written(path, tmp_path, chunk=20, executor=executor) == expected
    assert executor.by_value >= 5
    assert 0 < executor.by_reference < executor.by_value


@pytest.mark.parametrize("source", ["file", "table"])
def test_who_does_not_see_the_checkpoint_does_not_keep_it(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept here, as by who does, and has the same bytes."""
    path = holdings(tmp_path)
    given: Any = path if source == "file" else pd.read_parquet(path)
    expected = content(run(rebalancer().policy, given, chunk=20, checkpoint=tmp_path / "ours"))
    monkeypatch.setattr(Checkpoint, "is_here", lambda self: False)
    chunks = run(rebalancer().policy, given, chunk=20, checkpoint=tmp_path / "theirs", executor=Elsewhere())
    assert content(chunks) == expected
    kept = [{file.name: file.read_bytes() for file in (tmp_path / who).iterdir()} for who in ("ours", "theirs")]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 2 + 5


@pytest.mark.slow
def test_data_do_not_pass_through_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers read their rows, keep their chunks and encode their row groups; what a dead one leaves is done here."""
    path = holdings(tmp_path, 16)
    expected = written(path, tmp_path)
    paths = {what: tmp_path / "out" / f"{what}.parquet" for what in ("results", "orders")}
    options: Any = {"executor": 1, "chunk": 40, "progress": False}
    with monkeypatch.context() as closed:
        closed.setattr(FileRows, "table", None)
        closed.setattr(Checkpoint, "save", None)
        closed.setattr(output_files.Parquet, "encoded", None)
        write(rebalancer().policy, path, **paths, checkpoint=tmp_path / "kept", **options)
    assert len(list((tmp_path / "kept").glob("chunk-*.bin"))) == 2
    assert [file.read_bytes() for file in paths.values()] == expected
    table = pd.read_parquet(path)
    pq.write_table(pa.Table.from_pandas(harmed(table, 1, "P0006"), preserve_index=False), path)
    summary = write(rebalancer().policy, path, **paths, **options)
    assert summary.statuses == {"OPTIMAL": 12, "NO_TRADE": 2, "INVALID_INPUT": 1, "WORKER_DIED": 1}
    others = pd.read_parquet(paths["orders"]).query("portfolio_id != 'P0006'")
    calm = pd.read_parquet(tmp_path / "orders.parquet").query("portfolio_id != 'P0006'")
    pd.testing.assert_frame_equal(others.reset_index(drop=True), calm.reset_index(drop=True), check_exact=True)
