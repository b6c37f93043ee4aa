"""Between Arrow and plain arrays: Parquet files, and frames of other libraries. Needs pyarrow, the extra `io`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import local

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.errors import InputError
from equipoise.optimizer.batches.plain_tables import Column, Message, compact, plain

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise ImportError("Parquet files and Arrow tables need pyarrow: pip install equipoise[io]") from error

# pa and pq from here, so that one place says what is missing.
__all__ = ["array", "close", "column_names", "columns", "pa", "pq", "rows", "table"]
#: Rows that are decoded at once: of all columns, and of some.
_ROWS = 20_000
_ROWS_OF_SOME = 100_000
#: Texts of a column are few if there are so many rows for each.
_FEW = 8
#: Streamed page by page: by default a row group would be loaded as a whole, and ahead of its use.
_STREAMED = {"buffer_size": 1 << 20, "pre_buffer": False}


def column_names(path: str | os.PathLike[str]) -> list[str]:
    """Of a Parquet file. Raises InputError for what is none."""
    with _named(path):
        return list(pq.read_schema(path).names)


def columns(path: str | os.PathLike[str], names: Sequence[str]) -> Iterator[Message]:
    """These columns of a Parquet file, some rows at a time. Raises InputError for what cannot be read."""
    with _named(path), pq.ParquetFile(path, read_dictionary=names, **_STREAMED) as file:
        for batch in file.iter_batches(_ROWS_OF_SOME, columns=names, use_threads=False):
            yield _message(batch)


def rows(path: str, version: tuple[int, int], first: int, last: int) -> Message:
    """Rows first … last − 1 of a Parquet file. Raises InputError for what cannot be read.

    version: tells the file from one that has taken its place. The thread keeps the file open, so that one who reads on
    does not begin again: until it reads another, or `close`.
    """
    with _named(path):
        reader = getattr(_open, "reader", None)
        if reader is None or reader.of != (path, version):
            close()
            reader = _open.reader = _Reader(path, version)
        found = reader.rows(first, last)
    return compact(_message(found))


def close() -> None:
    """Let go of the file that this thread has read rows of."""
    reader = _open.__dict__.pop("reader", None)
    if reader is not None:
        reader.file.close()


_open = local()


class _Reader:
    """The rows of a Parquet file from front to end. To go back, or on to another row group, a group is begun anew."""

    def __init__(self, path: str, version: tuple[int, int]) -> None:
        self.of = path, version
        self.file = pq.ParquetFile(path, **_STREAMED)
        counts = [self.file.metadata.row_group(i).num_rows for i in range(self.file.num_row_groups)]
        self._edges = np.append(0, np.cumsum(counts))
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._begin = self._end = 0  # the rows of the batch
        self._batch: pa.RecordBatch | None = None

    def rows(self, first: int, last: int) -> pa.Table:
        found = []
        while first < last:
            self._go_to(first)
            assert self._batch is not None
            found.append(self._batch.slice(first - self._begin, last - first))
            first = self._end
        return pa.Table.from_batches(found, self.file.schema_arrow)

    def _go_to(self, row: int) -> None:
        """Have the batch with this row."""
        group = int(np.searchsorted(self._edges, row, side="right")) - 1
        if row < self._begin or self._edges[group] > self._end or self._batch is None:
            groups = range(group, self.file.num_row_groups)
            self._batches = self.file.iter_batches(_ROWS, row_groups=groups, use_threads=False)
            self._end = int(self._edges[group])
        while row >= self._end:
            self._batch = next(self._batches)
            self._begin, self._end = self._end, self._end + len(self._batch)


@contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{os.fspath(path)}: cannot be read: {error}") from None
    except pa.ArrowInvalid as error:
        raise InputError(f"{os.fspath(path)} is not a Parquet file: {error}") from None


def table(source: object) -> Message:
    """Anything with the Arrow stream interface: an Arrow table, a Polars frame, a DuckDB relation."""
    return _message(pa.table(source).combine_chunks())


def _message(table: pa.Table | pa.RecordBatch) -> Message:
    return [(name, _column(column)) for name, column in zip(table.schema.names, table.columns, strict=True)]


def _column(column: pa.Array | pa.ChunkedArray) -> Column:
    """Integers and booleans are always masked: one form, whether or not a cell of this batch is blank."""
    kind = column.type
    if pa.types.is_dictionary(kind) and not _is_text(kind.value_type):
        column = column.cast(kind := kind.value_type)
    if _is_text(kind):
        column = column.dictionary_encode()
    if isinstance(column, pa.ChunkedArray):
        column = column.unify_dictionaries().combine_chunks()
    if pa.types.is_dictionary(column.type):
        return _text_column(column)
    if pa.types.is_floating(kind):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        values = column.fill_null(pa.scalar(0).cast(kind)).to_numpy(zero_copy_only=False)
        return values, column.is_null().to_numpy(zero_copy_only=False)
    return [plain(cell) for cell in column.to_pylist()]


def _text_column(column: pa.DictionaryArray) -> Column:
    indices = column.indices.fill_null(-1) if column.null_count else column.indices
    codes = indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    texts = column.dictionary
    if len(texts) > len(codes) // _FEW:
        codes, texts = _used(codes, texts)
    cells = texts.to_pylist()
    if None in cells or len(set(cells)) < len(cells):  # not as we, or Parquet, make them
        return [plain(cell) for cell in column.to_pylist()]
    return codes, cells


def _used(codes: NDArray[np.int32], texts: pa.Array) -> tuple[NDArray[np.int32], pa.Array]:
    """The same with no texts but those that are there: those of a row group may be many more than those of its part."""
    used = np.zeros(len(texts) + 1, dtype=bool)
    used[codes] = True  # for a blank, −1, one beyond the texts
    places = np.cumsum(used, dtype=np.int32) - 1
    places[-1] = -1
    return places[codes], texts.filter(pa.array(used[:-1]))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def array(column: Column, kind: pa.DataType) -> pa.Array:
    """The column as an Arrow array of this type."""
    if isinstance(column, np.ndarray):
        return pa.array(column, kind)
    if isinstance(column, tuple):
        first, second = column
        if not isinstance(second, list):
            return pa.array(first, kind, mask=second)
        places = pa.array(first, pa.int32(), mask=first < 0)
        return pa.DictionaryArray.from_arrays(places, pa.array(map(_text, second), pa.string())).cast(kind)
    return pa.array([_text(cell) if kind == pa.string() else cell for cell in column], kind)


def _text(cell: object) -> str | None:
    """A portfolio_id need not be text, nor text be more than half of a surrogate pair."""
    return None if cell is None else str(cell).encode("utf-8", "backslashreplace").decode()
