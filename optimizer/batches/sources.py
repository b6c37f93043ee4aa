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
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import blank
from equipoise.optimizer.batches import plain_tables as message
from equipoise.optimizer.batches.chunk import keyed
from equipoise.optimizer.batches.plain_tables import Message

if TYPE_CHECKING:
    import pandas as pd

Starts: TypeAlias = NDArray[np.intp]
Source: TypeAlias = "pd.DataFrame | Iterable[pd.DataFrame] | str | os.PathLike[str] | Any"


@dataclass(frozen=True)
class Stream:
    """A source, opened: its tables, in which the rows of a portfolio are neighbours and may go on in the next.

    universe: the asset labels that rules may name. portfolios: how many there are; None if that is not known.
    """

    tables: Iterable[Message]
    universe: frozenset[str]
    portfolios: int | None = None

    def chunks(self, rows: int) -> Iterator[tuple[Message, Starts]]:
        """Whole portfolios of together at least this many rows (but for the last), and each one's first row.

        Where a chunk ends depends on the portfolios alone, not on the tables in which they come.
        """
        held: list[Message] = []
        for table in self.tables:
            if held and not message.alike(held[-1], table):
                yield from _cut(held, rows)
                held = []
            held.append(table)
            if sum(map(message.length, held)) > rows:
                held = [(yield from _cut(held, rows, goes_on=True))]
        if held:
            yield from _cut(held, rows)


def open_stream(source: Source, rows: int, universe: Iterable[str] = ()) -> Stream:
    """Raises InputError for what is no source. `rows`: how many to read at once."""
    import pandas as pd

    if isinstance(universe, str):
        raise InputError("must be a list of assets, not one text", column="universe", value=universe)
    known = frozenset(universe)
    if isinstance(source, str | os.PathLike):
        from equipoise.optimizer.batches.arrow import parquet

        names, read = parquet(source, rows)
        _check_keys(names)
        return Stream(read(None), *_survey(read(["portfolio_id", "asset"]), known, whole=False))
    if isinstance(source, pd.DataFrame) or hasattr(source, "__arrow_c_stream__"):
        source = [source]
    if not isinstance(source, Iterable):
        raise InputError("a batch is a DataFrame, some of them, or the path of a Parquet file", value=type(source))
    if isinstance(source, Sequence):
        tables = [_table(one) for one in source]
        return Stream(tables, *_survey(tables, known))
    return Stream(_unrepeated(map(_table, source)), known)


def _table(source: Any) -> Message:
    """A table as plain arrays, the rows of each portfolio together, in the order of first rows."""
    import pandas as pd

    if hasattr(source, "__arrow_c_stream__") and not isinstance(source, pd.DataFrame):
        from equipoise.optimizer.batches.arrow import table

        found = table(source)
        _check_keys([name for name, _ in found])
    else:
        found = message.encode(keyed(source))
    starts, names = _runs(found)
    if len(set(names)) == len(names):
        return found
    places: dict[str, int] = {}
    order = np.array([places.setdefault(name, len(places)) for name in names])
    lengths = np.diff(np.append(starts, message.length(found)))
    return message.rows(found, np.argsort(np.repeat(order, lengths), kind="stable"))


def _check_keys(names: list[str]) -> None:
    import pandas as pd

    keyed(pd.DataFrame(columns=names))


def _cut(held: list[Message], rows: int, *, goes_on: bool = False) -> Generator[tuple[Message, Starts], None, Message]:
    """Chunks off the front. goes_on: the last portfolio may do so in the next table; the rest is returned."""
    table = message.joined(held)
    count = message.length(table)
    starts, _ = _runs(table)
    edges = starts if goes_on else np.append(starts, count)
    begin, first = 0, 0
    while begin < count and (last := int(np.searchsorted(edges, begin + rows))) < len(edges):
        end = int(edges[last])
        yield message.compact(message.rows(table, slice(begin, end))), starts[first:last] - begin
        begin, first = end, last
    rest = message.compact(message.rows(table, slice(begin, None)))
    if begin < count and not goes_on:
        yield rest, starts[first:] - begin
    return rest


def _runs(table: Message) -> tuple[Starts, list[str]]:
    """Where the portfolio_id changes, and the portfolio from there on. All blank ids are one portfolio."""
    ids = dict(table)["portfolio_id"]
    if isinstance(ids, tuple) and isinstance(ids[1], list) and "" not in ids[1]:
        codes, cells = ids[0], [*ids[1], ""]
    else:  # 1, 1.0 and "1" are different
        names = ["" if blank(x) else x if isinstance(x, str) else f"\0{x!r} {type(x)}" for x in message.listed(ids)]
        places = {name: i for i, name in enumerate(dict.fromkeys(names))}
        codes, cells = np.array([places[name] for name in names], dtype=np.int32), list(places)
    starts = np.flatnonzero(np.append(True, codes[1:] != codes[:-1])[: len(codes)])
    return starts, [cells[code] for code in codes[starts].tolist()]


def _survey(tables: Iterable[Message], known: frozenset[str], *, whole: bool = True) -> tuple[frozenset[str], int]:
    """All labels, and how many portfolios there are. Raises InputError for one that comes back.

    whole: whether a portfolio ends with its table.
    """
    labels, seen = set(known), _Seen(whole)
    for table in tables:
        seen.add(table)
        assets = dict(table)["asset"]
        unique = assets[1] if isinstance(assets, tuple) and isinstance(assets[1], list) else message.listed(assets)
        labels.update(label for label in unique if isinstance(label, str))
    return frozenset(labels), seen.count


def _unrepeated(tables: Iterable[Message]) -> Iterator[Message]:
    seen = _Seen(whole=True)
    for table in tables:
        seen.add(table)
        yield table


class _Seen:
    """The portfolios so far: eight bytes each, for a stream may have very many of them.

    These are hashes; that two of ten million different ids share one has a chance of 3 in a million.
    """

    def __init__(self, whole: bool) -> None:
        self.count = 0
        self._whole, self._last = whole, ""
        self._runs: list[NDArray[np.uint64]] = []  # sorted, each at least twice as long as the next

    def add(self, table: Message) -> None:
        _, names = _runs(table)
        if len(set(names)) < len(names):
            self._fail(Counter(names).most_common(1)[0][0])
        if not names:
            return
        goes_on = not self._whole and self.count > 0 and names[0] == self._last
        self._last = names[-1]
        names = names[goes_on:]
        digests = (blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in names)
        run = np.frombuffer(b"".join(digests), dtype=np.uint64)
        for other in self._runs:
            found = other[np.minimum(np.searchsorted(other, run), len(other) - 1)] == run
            if found.any():
                self._fail(names[int(np.argmax(found))])
        self.count += len(run)
        run = np.sort(run)
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
