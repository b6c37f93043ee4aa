"""Between Arrow and plain arrays: Parquet files, and frames of other libraries. Needs pyarrow, the extra `io`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np

from equipoise.constraints.errors import InputError
from equipoise.optimizer.batches.plain_tables import Column, Message, plain

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise ImportError("Parquet files and Arrow tables need pyarrow: pip install equipoise[io]") from error

__all__ = ["array", "pa", "parquet", "pq", "table"]  # pa and pq from here, so that one place says what is missing

Reader: TypeAlias = Callable[[Sequence[str] | None], Iterator[Message]]


def parquet(path: str | os.PathLike[str], rows: int) -> tuple[list[str], Reader]:
    """The names of a file's columns, and what reads them, or some of them, so many rows at a time.

    Raises InputError for what is no Parquet file.
    """

    def read(columns: Sequence[str] | None = None) -> Iterator[Message]:
        # Streamed page by page: by default a row group would be loaded as a whole, and ahead of its use.
        with _named(path), pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=rows, columns=columns, use_threads=False):
                yield _message(batch)

    with _named(path):
        return list(pq.read_schema(path).names), read


@contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{os.fspath(path)}: cannot be read: {error}") from None
    except pa.ArrowInvalid as error:
        raise InputError(f"{os.fspath(path)} is not a Parquet file: {error}") from None


def table(source: Any) -> Message:
    """Anything with the Arrow stream interface: an Arrow table, a Polars frame, a DuckDB relation."""
    return _message(pa.table(source).combine_chunks())


def _message(table: Any) -> Message:
    return [(name, _column(column)) for name, column in zip(table.schema.names, table.columns, strict=True)]


def _column(column: Any) -> Column:
    """Integers and booleans are always masked: one form, whether or not a cell of this batch is blank."""
    kind = column.type
    if pa.types.is_dictionary(kind) and not _is_text(kind.value_type):
        column = column.cast(kind := kind.value_type)
    if _is_text(kind):
        column = column.dictionary_encode()
    if isinstance(column, pa.ChunkedArray):
        column = column.unify_dictionaries().combine_chunks()
    if pa.types.is_dictionary(column.type):
        cells = column.dictionary.to_pylist()
        if None not in cells and len(set(cells)) == len(cells):
            return column.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32), cells
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        values = column.fill_null(pa.scalar(0).cast(kind)).to_numpy(zero_copy_only=False)
        return values, column.is_null().to_numpy(zero_copy_only=False)
    elif pa.types.is_floating(kind):
        values = column.to_numpy(zero_copy_only=False)
        return np.asarray(values)
    return [plain(cell) for cell in column.to_pylist()]


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def array(column: Column, kind: Any) -> Any:
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


def _text(cell: Any) -> str | None:
    """A portfolio_id need not be text, nor text be more than half of a surrogate pair."""
    return None if cell is None else str(cell).encode("utf-8", "backslashreplace").decode()
