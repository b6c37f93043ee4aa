"""Results and orders as files, written as they come and seen when they are whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, Protocol, TypeAlias, get_args

from equipoise.constraints.errors import InputError
from equipoise.optimizer.batches.chunk import empty, flat, from_messages
from equipoise.optimizer.batches.csv_cells import SCHEMA_VERSION, csv_text
from equipoise.optimizer.batches.plain_tables import Message, joined
from equipoise.optimizer.batches.whole_files import clean, replaced

if TYPE_CHECKING:
    import pandas as pd

#: Rows of a row group: always as many, so that a file's bytes do not depend on the size of chunks.
ROWS = 65_536


What: TypeAlias = Literal["results", "orders"]
WHAT = get_args(What)


class Sink(Protocol):
    def add(self, parts: Sequence[Sequence[Message]]) -> None:
        """Append what is in a chunk, given as its parts: (results, orders) each."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


@contextmanager
def sinks(paths: Mapping[What, str | os.PathLike[str]], source: object = None) -> Iterator[list[Sink]]:
    """Files for these, in this order, Parquet or CSV by the suffix of each path; not the file of the source.

    They are written under other names and renamed at the end of the context, all or, if it ends by an error, none.
    """
    kinds: dict[str, Callable[[IO[bytes], What], Sink]] = {".parquet": _Parquet, ".pq": _Parquet, ".csv": _Csv}
    places = [Path(path) for path in paths.values()]
    for what, place in zip(paths, places, strict=True):
        if place.suffix not in kinds:
            raise InputError(f"must end in one of {', '.join(kinds)}", column=what, value=str(place))
    inputs = [Path(source)] if isinstance(source, str | os.PathLike) else []
    with replaced(places, inputs=inputs) as files, ExitStack() as held:
        for folder in {place.parent for place in places}:
            clean(folder)
        made = [kinds[place.suffix](file, what) for place, file, what in zip(places, files, paths, strict=True)]
        yield [held.enter_context(closing(one)) for one in made]


class _Csv:
    def __init__(self, file: IO[bytes], what: What) -> None:
        self._file = file
        self._write(getattr(empty(), what), header=True)
        self._which = WHAT.index(what)

    def add(self, parts: Sequence[Sequence[Message]]) -> None:
        self._write(from_messages(parts)[self._which], header=False)

    def _write(self, table: pd.DataFrame, *, header: bool) -> None:
        plain = flat(table)
        columns = list(plain.columns)
        records = [dict(zip(columns, row, strict=True)) for row in zip(*(plain[c] for c in columns), strict=True)]
        text = csv_text(records, columns)
        self._file.write((text if header else text.partition("\n")[2]).encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        pass


class _Parquet:
    def __init__(self, file: IO[bytes], what: What) -> None:
        from equipoise.optimizer.batches.arrow import pa, pq

        kinds = {"float64": pa.float64(), "Int64": pa.int64(), "int64": pa.int64(), "bool": pa.bool_()}
        plain = flat(getattr(empty(), what))
        fields = [(name, kinds.get(str(plain[name].dtype), pa.string())) for name in plain.columns]
        self._schema = pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})
        self._writer = pq.ParquetWriter(file, self._schema)
        self._held = self._schema.empty_table()
        self._which = WHAT.index(what)

    def add(self, parts: Sequence[Sequence[Message]]) -> None:
        from equipoise.optimizer.batches.arrow import array, pa

        columns = dict(joined([part[self._which] for part in parts]))
        arrays = [array(columns[field.name], field.type) for field in self._schema]
        self._held = pa.concat_tables([self._held, pa.Table.from_arrays(arrays, schema=self._schema)])
        while len(self._held) >= ROWS:
            self._group(ROWS)

    def _group(self, rows: int) -> None:
        self._writer.write_table(self._held.slice(0, rows).combine_chunks(), row_group_size=ROWS)
        self._held = self._held.slice(rows)

    def close(self) -> None:
        if len(self._held):
            self._group(len(self._held))
        self._writer.close()
