"""Sources as chunks of whole portfolios, tables as plain arrays, and files at constant memory."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from decimal import Decimal
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batches import accounts, content, rebalancer
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise import InputError
from equipoise.optimizer.batches.plain_tables import (
    Unknown,
    compact,
    decode,
    encode,
    from_bytes,
    joined,
    length,
    plain,
    rows,
    to_bytes,
)
from equipoise.optimizer.batches.run import run
from equipoise.optimizer.batches.sources import open_stream


def listing(counts: list[int]) -> pd.DataFrame:
    """Portfolios of so many rows each; `row` numbers them."""
    names = [f"P{i}" for i, count in enumerate(counts) for _ in range(count)]
    return pd.DataFrame({"portfolio_id": names, "asset": "A", "row": range(len(names))})


def tables(source: Any, size: int) -> list[tuple[pd.DataFrame, list[int]]]:
    """The chunks as tables, and where their portfolios start and end."""
    found = []
    for part, edges in open_stream(source).chunks(size):
        message = part.table()
        assert to_bytes(compact(message)) == to_bytes(message)
        assert edges[-1] == length(message)
        found.append((decode(message), edges.tolist()))
    return found


def chunks(source: Any, size: int) -> list[list[tuple[str, list[int]]]]:
    """For each chunk its portfolios and their rows."""
    found = []
    for table, edges in tables(source, size):
        parts = [table.iloc[a:b] for a, b in pairwise(edges)]
        assert all(part["portfolio_id"].nunique() == 1 for part in parts)
        found.append([(part["portfolio_id"].iloc[0], part["row"].tolist()) for part in parts])
    return found


@settings(max_examples=40)
@given(
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    size=st.integers(1, 15),
    seed=st.integers(0, 10),
    data=st.data(),
)
def test_chunks_depend_on_the_portfolios_alone(counts: list[int], size: int, seed: int, data: st.DataObject) -> None:
    """Every portfolio once, whole and in the order of first rows; cut as soon as there are `size` rows."""
    table = listing(counts)
    wanted: list[list[tuple[str, list[int]]]] = [[]]
    for name, part in table.groupby("portfolio_id", sort=False):
        if sum(len(rows) for _, rows in wanted[-1]) >= size:
            wanted.append([])
        wanted[-1].append((str(name), part["row"].tolist()))
    assert chunks(table, size) == wanted

    cuts = sorted(data.draw(st.sets(st.integers(0, len(counts)))))
    edges = [0, *(sum(counts[:cut]) for cut in cuts), len(table)]
    pieces = [table.iloc[a:b] for a, b in pairwise(edges)]
    assert chunks(pieces, size) == wanted
    assert chunks(iter(pieces), size) == wanted

    # Interleaved: the rows of a portfolio keep their order, the portfolios that of their first rows.
    mixed = table.sample(frac=1, random_state=seed)
    assert sorted(chain.from_iterable(chunks(mixed, size))) == sorted(
        (str(name), part["row"].tolist()) for name, part in mixed.groupby("portfolio_id")
    )
    assert [name for chunk in chunks(mixed, size) for name, _ in chunk] == list(mixed["portfolio_id"].unique())


def test_ids_of_every_kind_are_portfolios_of_their_own() -> None:
    ids = pd.Series([1, True, 1.0, "1", None, np.nan, "", pd.NaT, [1], {"a"}, "a", np.int64(1)], dtype=object)
    table = pd.DataFrame({"portfolio_id": ids, "asset": "A", "row": range(12)})
    [(found, edges)] = tables(table, 100)
    portfolios = [found["row"].tolist()[a:b] for a, b in pairwise(edges)]
    assert portfolios == [[0, 11], [1], [2], [3], [4, 5, 6, 7], [8], [9], [10]]


def test_tables_that_do_not_fit_together_are_not_joined() -> None:
    """Another column, or integers among floats: neither may gain a blank or lose a digit."""
    parts = [
        pd.DataFrame({"portfolio_id": ["A"], "asset": ["X"], "n": [2**53 + 1]}),
        pd.DataFrame({"portfolio_id": ["B"], "asset": ["X"], "n": [0.5]}),
        pd.DataFrame({"portfolio_id": ["C"], "asset": ["X"], "other": [1]}),
    ]
    found = [table for table, _ in tables(parts, 100)]
    assert [list(table.columns)[2] for table in found] == ["n", "n", "other"]
    assert found[0]["n"].tolist() == [2**53 + 1]


@pytest.mark.parametrize("kind", [list, iter])
def test_a_portfolio_in_two_tables_is_an_error(kind: Any) -> None:
    parts = [listing([2, 2]), pd.concat([listing([1]).replace("P0", "P7"), listing([2, 1]).iloc[2:]])]
    with pytest.raises(InputError, match=r"portfolio 'P1'.*comes again.*a table must hold whole portfolios"):
        tables(kind(parts), 3)


def test_very_many_portfolios_are_told_apart() -> None:
    """The record of those that were seen is merged many times over."""
    parts = [pd.DataFrame({"portfolio_id": [f"{i}-{j}" for j in range(37)], "asset": "A"}) for i in range(60)]
    assert open_stream(parts).portfolios == 37 * 60
    for again in (0, 30, 59):
        with pytest.raises(InputError, match=f"portfolio '{again}-5'"):
            open_stream([*parts, parts[again].iloc[5:6]])


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (7, "a batch is a DataFrame, some of them, or the path of a Parquet file"),
        ([7], "a batch is a DataFrame with the columns portfolio_id and asset"),
        (pd.DataFrame({"asset": ["A"]}), "a batch needs a column portfolio_id"),
        ("missing.parquet", r"missing\.parquet: cannot be read"),
        (__file__, r"test_stream\.py is not a Parquet file"),
    ],
)
def test_what_is_no_source_is_refused(source: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        tables(source, 10)
    with pytest.raises(InputError, match="must be a list of assets"):
        open_stream(listing([1]), "BTC")


# Parquet and Arrow


def parquet(path: Path, table: pd.DataFrame, group: int = 7) -> Path:
    pq.write_table(pa.Table.from_pandas(table), path, row_group_size=group)
    return path


def test_a_portfolio_may_span_row_groups(tmp_path: Path) -> None:
    table = accounts(12)
    path = parquet(tmp_path / "t.parquet", table)
    assert pq.ParquetFile(path).num_row_groups == 9
    expected = content(run(rebalancer().policy, table))
    for size in (1, 5, 17, None):
        assert content(run(rebalancer().policy, path, chunk=size)) == expected
    assert open_stream(str(path)).portfolios == 12


@pytest.mark.parametrize("group", [3, 1000])
def test_a_portfolio_that_comes_back_in_a_file_is_an_error(group: int, tmp_path: Path) -> None:
    """Before anything is solved: the ids are read first."""
    table = listing([2, 3, 2, 1])
    path = parquet(tmp_path / "t.parquet", pd.concat([table, table.iloc[2:3]]), group)
    with pytest.raises(InputError, match=r"portfolio 'P1'.*comes again.*sort the file by portfolio_id"):
        open_stream(path)


def test_cells_of_a_file_do_not_depend_on_their_neighbours(tmp_path: Path) -> None:
    """Integers stay integers where another is blank, decimals decimals, categories and indexes what they are."""
    table = pd.DataFrame(
        {
            "n": pd.array([2**53 + 1, None, 3, 4], dtype="Int64"),
            "flag": pd.array([True, False, None, True], dtype="boolean"),
            "price": [Decimal("0.10"), Decimal("2.50"), None, Decimal("3.00")],
            "kind": pd.Categorical(["a", None, "b", "a"]),
        },
        index=pd.MultiIndex.from_arrays([["P", "P", "Q", "Q"], ["X", "Y", "X", "Y"]], names=["portfolio_id", "asset"]),
    )
    path = parquet(tmp_path / "t.parquet", table, 2)
    for size in (1, 4):
        parts = [part for part, _ in tables(path, size)]
        found = {name: [plain(cell) for part in parts for cell in part[name]] for name in parts[0].columns}
        assert found == {
            "n": [2**53 + 1, None, 3, 4],
            "flag": [True, False, None, True],
            "price": [Decimal("0.10"), Decimal("2.50"), None, Decimal("3.00")],
            "kind": ["a", None, "b", "a"],
            "portfolio_id": ["P", "P", "Q", "Q"],
            "asset": ["X", "Y", "X", "Y"],
        }


class Stream:
    """What a Polars frame or a DuckDB relation is to us."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(requested_schema)


def test_frames_of_others_come_through_the_arrow_interface() -> None:
    table = accounts(4)
    arrow = pa.Table.from_pandas(table)
    expected = content(run(rebalancer().policy, table))
    for source in (arrow, Stream(arrow)):
        assert content(run(rebalancer().policy, source, chunk=7)) == expected


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak memory of a process is in /proc")
def test_a_file_of_any_size_is_read_in_the_same_memory(tmp_path: Path) -> None:
    """Five times the file: the most that the process holds grows by less than a quarter of what the file does."""
    code = (
        "import pathlib, sys; from equipoise.optimizer.batches.sources import open_stream\n"
        "from equipoise.optimizer.batches.plain_tables import length\n"
        "stream = open_stream(sys.argv[1])\n"
        "rows = sum(length(part.table()) for part, _ in stream.chunks(10_000))\n"
        # Not getrusage: on Linux its maximum is that of the parent process too.
        "[peak] = [x for x in pathlib.Path('/proc/self/status').read_text().splitlines() if x.startswith('VmHWM')]\n"
        "print(rows, stream.portfolios, int(peak.split()[1]) * 1024)"
    )
    peaks = []
    for count in (5_000, 25_000):
        n = 20 * count
        rng = np.random.default_rng(count)
        table = pa.table(
            {
                "portfolio_id": np.repeat([f"P{i:06d}" for i in range(count)], 20),
                "asset": np.tile([f"A{i:02d}" for i in range(20)], count),
                **{name: rng.random(n) for name in ("quantity", "price", "target", "lot")},
            }
        )
        pq.write_table(table, tmp_path / "t.parquet", row_group_size=50_000)
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "t.parquet")], stdout=subprocess.PIPE, check=True
        )
        found = [int(x) for x in done.stdout.split()]
        assert found[:2] == [n, count]
        peaks.append(found[2])
    more = 20 * 20_000 * 4 * 8  # bytes of the numbers alone
    assert peaks[1] - peaks[0] < more / 4, peaks


# Tables as plain arrays

CELLS = st.one_of(
    st.text(),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.decimals(allow_nan=False),
    st.fractions(),
)


@pytest.mark.slow
@settings(max_examples=50)
@given(cells=st.lists(CELLS, min_size=1), number=st.lists(st.floats(), min_size=1), data=st.data())
def test_a_table_comes_back_with_the_same_cells(cells: list[Any], number: list[float], data: st.DataObject) -> None:
    """Through arrays and through bytes, whole and in part; bit by bit, −0 and the types of equal numbers included."""
    n = min(len(cells), len(number))
    table = pd.DataFrame({"cell": pd.Series(cells[:n], dtype=object), "number": np.array(number[:n])})
    message = encode(table)
    [again] = from_bytes(to_bytes(message))
    assert to_bytes(again) == to_bytes(message)
    a, b = sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
    back = decode(rows(again, slice(a, b)))
    assert to_bytes(rows(again, np.arange(a, b))) == to_bytes(rows(again, slice(a, b)))
    assert to_bytes(compact(joined([rows(again, slice(a)), rows(again, slice(a, None))]))) == to_bytes(compact(again))
    assert [(type(x), repr(x)) for x in back["cell"]] == [(type(x), repr(x)) for x in cells[a:b]]
    assert back["number"].to_numpy().tobytes() == table["number"].to_numpy()[a:b].tobytes()


def test_columns_of_every_type_become_plain() -> None:
    table = pd.DataFrame(
        {
            "float32": np.array([0.1, 2.0], dtype=np.float32),
            "Int64": pd.array([1, 2], dtype="Int64"),
            "Int64 with blanks": pd.array([1, None], dtype="Int64"),
            "text": pd.array(["a", None], dtype="str"),
            "category": pd.Categorical(["b", "a"]),
            "arrow": pd.array([1.5, None], dtype=pd.ArrowDtype(pa.float64())),
            "time": pd.to_datetime(["2027-01-01", None]),
            "object": [np.float64(0.5), np.True_],
        }
    )
    back = decode(encode(table))
    assert back["float32"].dtype == np.float32
    assert back["Int64"].dtype == np.int64
    assert {name: [plain(cell) for cell in back[name]] for name in back.columns[2:]} == {
        "Int64 with blanks": [1, None],
        "text": ["a", None],
        "category": ["b", "a"],
        "arrow": [1.5, None],
        "time": [Unknown("Timestamp('2027-01-01 00:00:00')"), None],
        "object": [0.5, True],
    }
    assert repr(plain(date(2027, 1, 1))) == "datetime.date(2027, 1, 1)"
    assert plain(Fraction(1, 3)) == Fraction(1, 3)


def test_columns_of_the_same_name_stay_two() -> None:
    table = pd.DataFrame([[1, 2]], columns=["a", "a"])
    assert list(decode(encode(table)).columns) == ["a", "a"]


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", to_bytes(encode(listing([2])))[:-9]])
def test_bytes_that_are_no_table_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        from_bytes(data)


def test_half_a_surrogate_pair_in_an_id_is_an_id() -> None:
    table = accounts(2).astype({"portfolio_id": object}).replace({"portfolio_id": {"P0001": "P\ud800"}})
    chunks = run(rebalancer().policy, [table[:5], table[5:]], chunk=5)
    assert [list(chunk.results.index) for chunk in chunks] == [["P0000"], ["P\ud800"]]
