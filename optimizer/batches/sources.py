"""Sources of a batch: tables of any size as chunks of whole portfolios, at constant memory.

A source is a DataFrame, some DataFrames one after the other, a Parquet file, or anything with the Arrow stream
interface (`__arrow_c_stream__`: Arrow tables, Polars frames, DuckDB relations). What is asked of each is that a
portfolio stands in one place: within one DataFrame its rows may be anywhere; of several tables each holds whole
portfolios; in a file its rows are neighbours, across row groups if need be. A portfolio that comes back later is
an error that names it, for half a portfolio must never be rebalanced.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import blank
from equipoise.optimizer.batches import plain_tables
from equipoise.optimizer.batches.inputs import keyed
from equipoise.optimizer.batches.plain_tables import Message

if TYPE_CHECKING:
    import pandas as pd

#: Where each portfolio begins among some rows, and where the last one ends.
Edges: TypeAlias = NDArray[np.intp]
Source: TypeAlias = "pd.DataFrame | Iterable[pd.DataFrame] | str | os.PathLike[str] | Any"


class NotThereError(InputError):
    """A file that is not, or not as it was, where it is looked for: on this machine, or by now."""


class Rows(Protocol):
    """Some rows of a source that stand together, by value or by reference: what a worker is sent."""

    def table(self) -> Message:
        """The rows. Raises NotThereError, or InputError for a file that cannot be read."""
        ...

    def part(self, first: int, last: int) -> Rows:
        """Of these rows first … last − 1."""
        ...


class TableRows(NamedTuple):
    """Rows by value."""

    rows: Message

    def table(self) -> Message:
        return self.rows

    def part(self, first: int, last: int) -> TableRows:
        if last - first == plain_tables.length(self.rows):
            return self
        return TableRows(plain_tables.compact(plain_tables.rows(self.rows, slice(first, last))))


class FileRows(NamedTuple):
    """Rows first … last − 1 of a Parquet file. version: as `_version` says it."""

    path: str
    version: tuple[int, int]
    first: int
    last: int

    def table(self) -> Message:
        from equipoise.optimizer.batches.arrow import rows

        if _version(self.path) != self.version:
            raise NotThereError(f"{self.path}: changed while it was read; run it again")
        return rows(*self)

    def part(self, first: int, last: int) -> FileRows:
        return self._replace(first=self.first + first, last=self.first + last)


def _version(path: str) -> tuple[int, int]:
    """The size of a file and the time of its last change in nanoseconds; zeros if there is none."""
    try:
        found = Path(path).stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Stream:
    """A source, opened.

    chunks: for a number of rows, whole portfolios of together at least so many (but for the last). Where a chunk ends
        depends on the portfolios alone, not on the tables in which they come.
    universe: the asset labels that rules may name. portfolios: how many there are; None if that is not known.
    close: to be called when no rows are read any more.
    """

    chunks: Callable[[int], Iterator[tuple[Rows, Edges]]]
    universe: frozenset[str]
    portfolios: int | None = None
    close: Callable[[], None] = _nothing


def open_stream(source: Source, universe: Iterable[str] = ()) -> Stream:
    """Raises InputError for what is no source."""
    import pandas as pd

    if isinstance(universe, str):
        raise InputError("must be a list of assets, not one text", column="universe", value=universe)
    known = frozenset(universe)
    if isinstance(source, str | os.PathLike):
        return _file(os.fspath(source), known)
    if isinstance(source, pd.DataFrame) or hasattr(source, "__arrow_c_stream__"):
        source = [source]
    if not isinstance(source, Iterable):
        raise InputError("a batch is a DataFrame, some of them, or the path of a Parquet file", value=type(source))
    seen = _Seen(whole=True)
    tables = (seen.checked(_table(one)) for one in source)
    if not isinstance(source, Sequence):
        return Stream(partial(_chunks, tables), known)
    kept = list(tables)
    return Stream(partial(_chunks, kept), known.union(*map(_labels, kept)), seen.count)


def _file(path: str, known: frozenset[str]) -> Stream:
    """A Parquet file. Ids and labels are read now, the other cells by whoever needs them."""
    from equipoise.optimizer.batches.arrow import close, column_names, columns

    version = _version(path)
    _check_keys(column_names(path))
    labels, seen = set(known), _Seen(whole=False)
    edges, end = [], 0
    for table in columns(path, ["portfolio_id", "asset"]):
        edges.append(end + seen.add(table))
        labels |= _labels(table)
        end += plain_tables.length(table)
    edges.append(np.array([end], dtype=np.intp))
    rows = FileRows(str(Path(path).absolute()), version, 0, end)
    return Stream(partial(_parts, rows, np.concatenate(edges)), frozenset(labels), seen.count, close)


def _parts(rows: Rows, edges: Edges, size: int) -> Iterator[tuple[Rows, Edges]]:
    """Chunks of these rows."""
    ends = list(cuts(edges, size))
    if not ends or ends[-1] < len(edges) - 1:
        ends.append(len(edges) - 1)
    for first, last in pairwise([0, *ends]):
        begin = int(edges[first])
        if first < last:
            yield rows.part(begin, int(edges[last])), edges[first : last + 1] - begin


def cuts(edges: Edges, size: int, begun: int = 0) -> Iterator[int]:
    """At which of the edges chunks end that have at least so many rows, and no portfolio more.

    begun: rows that the first one has had before."""
    first, wanted = 0, size - begun
    while (last := int(np.searchsorted(edges, edges[first] + wanted))) < len(edges):
        yield last
        first, wanted = last, size


def _chunks(tables: Iterable[Message], size: int) -> Iterator[tuple[Rows, Edges]]:
    """Chunks of tables in which the rows of a portfolio are neighbours, and may go on in the next."""
    held: list[Message] = []
    for table in tables:
        if held and not plain_tables.alike(held[-1], table):
            yield from _cut(held, size)
            held = []
        held.append(table)
        if sum(map(plain_tables.length, held)) > size:
            held = [(yield from _cut(held, size, goes_on=True))]
    if held:
        yield from _cut(held, size)


def _table(source: Any) -> Message:
    """A table as plain arrays, the rows of each portfolio together, in the order of first rows."""
    import pandas as pd

    if hasattr(source, "__arrow_c_stream__") and not isinstance(source, pd.DataFrame):
        from equipoise.optimizer.batches.arrow import table

        found = table(source)
        _check_keys([name for name, _ in found])
    else:
        found = plain_tables.encode(keyed(source))
    starts, names = _runs(found)
    if len(set(names)) == len(names):
        return found
    places: dict[str, int] = {}
    order = np.array([places.setdefault(name, len(places)) for name in names])
    lengths = np.diff(np.append(starts, plain_tables.length(found)))
    return plain_tables.rows(found, np.argsort(np.repeat(order, lengths), kind="stable"))


def _check_keys(names: list[str]) -> None:
    import pandas as pd

    keyed(pd.DataFrame(columns=names))


def _cut(held: list[Message], size: int, *, goes_on: bool = False) -> Generator[tuple[Rows, Edges], None, Message]:
    """Chunks off the front. goes_on: the last portfolio may do so in the next table; the rest is returned."""
    table = plain_tables.joined(held)
    count = plain_tables.length(table)
    starts, _ = _runs(table)
    edges = starts if goes_on else np.append(starts, count)
    begin, first = 0, 0
    for last in cuts(edges, size):
        end = int(edges[last])
        yield TableRows(table).part(begin, end), edges[first : last + 1] - begin
        begin, first = end, last
    rest = plain_tables.compact(plain_tables.rows(table, slice(begin, None)))
    if begin < count and not goes_on:
        yield TableRows(rest), edges[first:] - begin
    return rest


def _runs(table: Message) -> tuple[NDArray[np.intp], list[str]]:
    """Where the portfolio_id changes, and the portfolio from there on. All blank ids are one portfolio."""
    ids = dict(table)["portfolio_id"]
    if isinstance(ids, tuple) and isinstance(ids[1], list) and "" not in ids[1]:
        codes, cells = ids[0], [*ids[1], ""]
    else:  # 1, 1.0 and "1" are different
        names = [
            "" if blank(x) else x if isinstance(x, str) else f"\0{x!r} {type(x)}" for x in plain_tables.listed(ids)
        ]
        places = {name: i for i, name in enumerate(dict.fromkeys(names))}
        codes, cells = np.array([places[name] for name in names], dtype=np.int32), list(places)
    starts = np.flatnonzero(np.append(True, codes[1:] != codes[:-1])[: len(codes)])
    return starts, [cells[code] for code in codes[starts].tolist()]


def _distinct(cell: object) -> str:
    if blank(cell):
        return ""
    return cell if isinstance(cell, str) else f"\0{cell!r} {type(cell)}"


def _labels(table: Message) -> set[str]:
    """The text labels of a table's assets."""
    assets = dict(table)["asset"]
    unique = assets[1] if isinstance(assets, tuple) and isinstance(assets[1], list) else plain_tables.listed(assets)
    return {label for label in unique if isinstance(label, str)}


class _Seen:
    """The portfolios so far: eight bytes each, for a stream may have very many of them.

    These are hashes; that two of ten million different ids share one has a chance of 3 in a million.
    """

    def __init__(self, whole: bool) -> None:
        """whole: whether a portfolio ends with its table."""
        self.count = 0
        self._whole = whole
        self._last: str | None = None
        self._runs: list[NDArray[np.uint64]] = []  # sorted, each at least twice as long as the next

    def checked(self, table: Message) -> Message:
        """The table. Raises InputError for a portfolio that was there before."""
        self.add(table)
        return table

    def add(self, table: Message) -> NDArray[np.intp]:
        """The rows at which portfolios begin in this table. Raises InputError for one that was there before."""
        starts, names = _runs(table)
        if len(set(names)) < len(names):
            self._fail(Counter(names).most_common(1)[0][0])
        if not names:
            return starts
        goes_on = not self._whole and names[0] == self._last
        self._last = names[-1]
        names = names[goes_on:]
        hashes = _hashes(names)
        run = np.sort(hashes)  # what is sorted is found faster
        for other in self._runs:
            found = other[np.minimum(np.searchsorted(other, run), len(other) - 1)] == run
            if found.any():
                self._fail(names[int(np.argmax(np.isin(hashes, run[found], kind="sort")))])
        self.count += len(run)
        self._merge(run)
        return starts[goes_on:]

    def _merge(self, run: NDArray[np.uint64]) -> None:
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]))
        if len(run):
            self._runs.append(run)

    def _fail(self, name: str) -> None:
        raise InputError(
            "the portfolio comes again after others; "
            + ("a table must hold whole portfolios" if self._whole else "sort the file by portfolio_id"),
            portfolio=name.lstrip("\0"),
            column="portfolio_id",
        )


def _hashes(names: list[str]) -> NDArray[np.uint64]:
    from pandas.util import hash_array

    try:
        return hash_array(np.array(names, dtype=object), categorize=False)
    except UnicodeEncodeError:  # for half a surrogate pair
        escaped = [name.encode("utf-8", "backslashreplace").decode() for name in names]
        plain = [name if name == text else f"\0{text}" for name, text in zip(names, escaped, strict=True)]
        return hash_array(np.array(plain, dtype=object), categorize=False)
