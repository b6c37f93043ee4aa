"""Results and orders as files: encoded row group by row group wherever they were solved, joined in order, seen whole.

A row group holds what comes of portfolios of together `GROUP` rows of the source (of results, where these are few
portfolios, of a multiple). So the bytes of a file depend neither
on the size of chunks nor on who solves them: what covers a row group as a whole is encoded where it is solved; a chunk
that begins or ends within one gives these rows as plain arrays, and they are encoded when the row group is complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias, get_args

import numpy as np

from equipoise.constraints.errors import InputError
from equipoise.optimizer.batches.chunk import empty, flat, frame
from equipoise.optimizer.batches.csv_cells import SCHEMA_VERSION, csv_text
from equipoise.optimizer.batches.parquet_footer import MAGIC, Footer, RowGroup, row_group
from equipoise.optimizer.batches.plain_tables import Message, compact, joined, length, rows
from equipoise.optimizer.batches.sources import Edges, cuts
from equipoise.optimizer.batches.whole_files import clean, replaced

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

#: Rows of the source in a row group, and the least number of portfolios in one of results.
GROUP = 20_000
LEAST = 500

What: TypeAlias = Literal["results", "orders"]
WHAT: tuple[What, ...] = get_args(What)


class Groups(NamedTuple):
    """How the portfolios of a chunk fall into row groups. begins: whether the first of them begins one; ends: after how
    many of them one ends."""

    begins: bool
    ends: tuple[int, ...]


class Grouping:
    """Cuts what comes of a source into the row groups of a file, chunk by chunk."""

    def __init__(self, what: What) -> None:
        self._least = LEAST if what == "results" else 1
        self._rows = 0  # of the source, since the last end of a group of orders
        self._portfolios = 0  # since the last end of a group of this file

    def add(self, edges: Edges) -> Groups:
        """The next chunk, with its portfolios at these edges."""
        begins, last = self._portfolios == 0, -self._portfolios
        ends, begun = [], self._rows + int(edges[-1])
        for end in cuts(edges, GROUP, self._rows):
            begun = int(edges[-1] - edges[end])
            if end - last >= self._least:
                ends.append(end)
                last = end
        self._rows, self._portfolios = begun, len(edges) - 1 - last
        return Groups(begins, tuple(ends))


class Plain(NamedTuple):
    """Rows of a row group that other chunks have a part in; `ends`: whether it is complete with these."""

    table: Message
    ends: bool


Piece: TypeAlias = RowGroup | Plain


class Format(Protocol):
    """A kind of file, for results or for orders."""

    @property
    def what(self) -> What: ...

    def encoded(self, table: Message) -> RowGroup:
        """The rows as a row group."""
        ...

    def begin(self) -> bytes:
        """What a file begins with."""
        ...

    def footer(self) -> Footer | None:
        """What gathers what stands at its end, if anything does."""
        ...


class OutputFile:
    """A file that is being joined."""

    def __init__(self, file: IO[bytes], form: Format) -> None:
        self._file, self._form, self._footer = file, form, form.footer()
        self._held: list[Message] = []
        self._place = 0
        self._write(form.begin())

    def add(self, found: Sequence[Piece]) -> None:
        """Append what comes of the next chunk."""
        for piece in found:
            if isinstance(piece, RowGroup):
                self._append(piece)
                continue
            self._held.append(piece.table)
            if piece.ends:
                self._complete()

    def close(self) -> None:
        """Write what is left."""
        if self._held:
            self._complete()
        if self._footer is not None:
            self._write(self._footer.end())

    def _complete(self) -> None:
        self._append(self._form.encoded(joined(self._held)))
        self._held.clear()

    def _append(self, group: RowGroup) -> None:
        if group.rows:
            if self._footer is not None:
                self._footer.add(group, self._place)
            self._write(group.pages)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._place += len(data)


def formats(paths: Mapping[What, str | os.PathLike[str]]) -> tuple[Format, ...]:
    """Of files at these paths, by their suffixes. Raises InputError for another suffix."""
    found = []
    for what, path in paths.items():
        suffix = Path(path).suffix
        if suffix not in KINDS:
            raise InputError(f"must end in one of {', '.join(KINDS)}", column=what, value=str(path))
        found.append(KINDS[suffix](what))
    return tuple(found)


@contextmanager
def output_files(
    paths: Mapping[What, str | os.PathLike[str]], forms: Sequence[Format], source: object = None
) -> Iterator[list[OutputFile]]:
    """Files at these paths, in this order; not the file of the source.

    They are written under other names and renamed at the end of the context, all or, if it ends by an error, none.
    """
    places = [Path(path) for path in paths.values()]
    inputs = [Path(source)] if isinstance(source, str | os.PathLike) else []
    with replaced(places, inputs=inputs) as opened:
        for folder in {place.parent for place in places}:
            clean(folder)
        files = [OutputFile(file, form) for file, form in zip(opened, forms, strict=True)]
        yield files
        for one in files:
            one.close()


def pieces(form: Format, tables: Sequence[Message], groups: Groups) -> list[Piece]:
    """What becomes of a chunk's (results, orders) in a file."""
    table = tables[WHAT.index(form.what)]
    counts = np.asarray(dict(tables[0])["orders"]) if form.what == "orders" else np.ones(length(tables[0]), dtype=int)
    edges = np.append(0, np.cumsum(counts))
    found: list[Piece] = []
    for first, last in pairwise(sorted({0, *groups.ends, len(counts)})):
        part = rows(table, slice(int(edges[first]), int(edges[last])))
        whole = (first > 0 or groups.begins) and last in groups.ends
        found.append(form.encoded(part) if whole else Plain(compact(part), last in groups.ends))
    return found


@dataclass(frozen=True)
class Csv:
    what: What

    def encoded(self, table: Message) -> RowGroup:
        return RowGroup(length(table), self._text(frame(table, self.what)).partition(b"\n")[2], (), ())

    def begin(self) -> bytes:
        return self._text(getattr(empty(), self.what))

    def footer(self) -> None:
        return None

    def _text(self, table: pd.DataFrame) -> bytes:
        plain = flat(table)
        columns = list(plain.columns)
        records = [dict(zip(columns, row, strict=True)) for row in zip(*(plain[c] for c in columns), strict=True)]
        return csv_text(records, columns).encode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Parquet:
    what: What

    def encoded(self, table: Message) -> RowGroup:
        from equipoise.optimizer.batches.arrow import array, pa

        columns = dict(table)
        arrays = [array(columns[field.name], field.type) for field in _schema(self.what)]
        return row_group(_parquet(pa.Table.from_arrays(arrays, schema=_schema(self.what))), length(table))

    def begin(self) -> bytes:
        return MAGIC

    def footer(self) -> Footer:
        return Footer(_parquet(_schema(self.what).empty_table()))


KINDS: dict[str, type[Parquet | Csv]] = {".parquet": Parquet, ".pq": Parquet, ".csv": Csv}


@cache
def _schema(what: What) -> pa.Schema:
    from equipoise.optimizer.batches.arrow import pa

    kinds = {"float64": pa.float64(), "Int64": pa.int64(), "int64": pa.int64(), "bool": pa.bool_()}
    plain = flat(getattr(empty(), what))
    fields = [(name, kinds.get(str(plain[name].dtype), pa.string())) for name in plain.columns]
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})


def _parquet(table: pa.Table) -> bytes:
    """A file of one row group, or of none for no rows."""
    from equipoise.optimizer.batches.arrow import pa, pq

    out = pa.BufferOutputStream()
    with pq.ParquetWriter(out, table.schema) as writer:
        if len(table):
            writer.write_table(table, row_group_size=len(table))
    return bytes(out.getvalue())
