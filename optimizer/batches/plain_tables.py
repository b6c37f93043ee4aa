"""Tables as plain arrays: what travels between processes, and what is stored and digested.

A table becomes a list of named columns, each one of

    array    a numpy array of numbers or booleans
    masked   (values, mask): such an array, and True where the cell is blank
    text     (codes, cells): int32 places in a list of distinct texts, −1 where the cell is blank
    cells    a list of plain Python values: str, int, float, bool, None, Decimal, Fraction

and comes back as a table with the same cells, so that every number and every message that is made of them stays
the same to the last bit. Objects of any other kind are data of nobody's: they are replaced by an `Unknown` of the
same representation. `to_bytes` writes the same bytes for the same table, as .npy arrays without pickles.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.numbers import Cells, blank

if TYPE_CHECKING:
    import pandas as pd

Masked: TypeAlias = tuple[Cells, NDArray[np.bool_]]
Text: TypeAlias = tuple[NDArray[np.int32], list[str]]
Column: TypeAlias = "Cells | Masked | Text | list[Any]"
Message: TypeAlias = list[tuple[str, Column]]


@dataclass(frozen=True)
class Unknown:
    """Stands for a cell that is neither a number nor a text; it looks like it in messages."""

    text: str

    def __repr__(self) -> str:
        return self.text


def encode(table: pd.DataFrame) -> Message:
    """The columns of a table; its index is left out. Column labels become text."""
    return [(str(name), _column(table.iloc[:, i])) for i, name in enumerate(table.columns)]


def _column(column: pd.Series) -> Column:
    import pandas as pd

    inner = getattr(column.dtype, "numpy_dtype", column.dtype)
    if isinstance(inner, np.dtype) and inner.kind in "biuf":
        if inner == column.dtype:
            return np.ascontiguousarray(column.to_numpy())
        return column.to_numpy(dtype=inner, na_value=0), column.isna().to_numpy()
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    if pd.api.types.infer_dtype(column, skipna=True) in ("string", "empty"):
        codes, cells = pd.factorize(column)
        return codes.astype(np.int32), [str(cell) for cell in cells]
    return [plain(cell) for cell in np.asarray(column, dtype=object)]


def plain(cell: object) -> object:
    """The cell as a value of Python's own."""
    if type(cell) in (str, int, bool, Fraction):
        return cell
    if blank(cell):
        return None
    if type(cell) in (float, Decimal):
        return cell
    for kind, numeric in ((str, str), (bool | np.bool_, bool), (int | np.integer, int), (float | np.floating, float)):
        if isinstance(cell, kind):
            return numeric(cell)
    return Unknown(repr(cell))


def decode(message: Message) -> pd.DataFrame:
    """The table again; text and other cells as Python objects, their blanks as None."""
    import pandas as pd

    return pd.DataFrame({i: _values(column) for i, (_, column) in enumerate(message)}).set_axis(
        [name for name, _ in message], axis=1
    )


def _values(column: Column) -> Any:
    import pandas as pd

    if isinstance(column, np.ndarray):
        return column
    if isinstance(column, list):
        objects = np.empty(len(column), dtype=object)
        objects[:] = column
        return pd.Series(objects, dtype=object)
    first, second = column
    if isinstance(second, list):
        return pd.Series(_values([*second, None]).to_numpy()[first], dtype=object)
    if not second.any():
        return first
    kinds = {"b": pd.arrays.BooleanArray, "f": pd.arrays.FloatingArray}
    return kinds.get(first.dtype.kind, pd.arrays.IntegerArray)(first, second)


def typed(column: Column, dtype: Any) -> Any:
    """The column as a pandas Series of this type."""
    import pandas as pd

    if isinstance(column, tuple) and isinstance(column[1], list) and dtype == "str":
        cells = pd.Series([*column[1], None], dtype="str").array
        return pd.Series(cells.take(column[0]))  # −1, a blank, is the last
    return pd.Series(_values(column)).astype(dtype)


def length(message: Message) -> int:
    """How many rows it has."""
    return 0 if not message else len(message[0][1][0] if isinstance(message[0][1], tuple) else message[0][1])


def rows(message: Message, which: slice | NDArray[np.intp]) -> Message:
    """These rows alone."""

    def of(column: Column) -> Column:
        if isinstance(column, tuple):
            first, second = column
            return (first[which], second) if isinstance(second, list) else (first[which], second[which])
        if isinstance(column, list) and not isinstance(which, slice):
            return [column[i] for i in which.tolist()]
        return column[which]

    return [(name, of(column)) for name, column in message]


def compact(message: Message) -> Message:
    """The same with no texts but those that are there, in the order of the rows."""
    return [
        (name, _compact(*column) if isinstance(column, tuple) and isinstance(column[1], list) else column)
        for name, column in message
    ]


def _compact(codes: NDArray[np.int32], cells: list[str]) -> Text:
    if not len(codes):
        return codes, []
    low = max(int(codes.min()), 0)
    near = np.where(codes < 0, -1, codes - low)  # a blank's place is the last one
    first = np.full(max(int(codes.max()) - low + 1, 0) + 1, len(codes))
    first[near[::-1]] = np.arange(len(codes))[::-1]
    used = np.flatnonzero(first[:-1] < len(codes))
    used = used[np.argsort(first[used])]
    places = np.full(len(first), -1, dtype=np.int32)
    places[used] = np.arange(len(used))
    return places[near], [cells[low + i] for i in used.tolist()]


def joined(messages: Sequence[Message]) -> Message:
    """The rows of tables of the same columns, one table after the other."""
    if len(messages) == 1:
        return messages[0]
    return [(name, _joined([message[i][1] for message in messages])) for i, (name, _) in enumerate(messages[0])]


def _joined(columns: Sequence[Any]) -> Column:
    kinds = {_kind(column) for column in columns}
    if kinds == {"array"}:
        return np.concatenate(columns)
    if kinds == {"masked"}:
        return np.concatenate([c[0] for c in columns]), np.concatenate([c[1] for c in columns])
    if kinds == {"text"}:
        return _joined_text(columns)
    return [cell for column in columns for cell in listed(column)]


def _joined_text(columns: Sequence[Text]) -> Text:
    places: dict[str, int] = {}
    codes = []
    for own, cells in columns:
        new = [places.setdefault(cell, len(places)) for cell in cells]
        codes.append(np.array([*new, -1], dtype=np.int32)[own])
    return np.concatenate(codes), list(places)


def listed(column: Column) -> list[Any]:
    """The cells one by one, as Python values."""
    if isinstance(column, tuple):
        first, second = column
        if isinstance(second, list):
            with_blank = [*second, None]
            return [with_blank[code] for code in first.tolist()]
        return [None if blank else cell for cell, blank in zip(first.tolist(), second.tolist(), strict=True)]
    return column if isinstance(column, list) else column.tolist()


def alike(one: Message, other: Message) -> bool:
    """Whether they can be joined without changing a cell: integers beyond 2⁵³ are not the same as floats."""

    def form(column: Column) -> object:
        if isinstance(column, np.ndarray):
            return column.dtype
        return (column[0].dtype, "masked") if _kind(column) == "masked" else "cells"

    return [(name, form(c)) for name, c in one] == [(name, form(c)) for name, c in other]


def to_bytes(*messages: Message) -> bytes:
    """The same bytes for the same messages: a header and the columns, one .npy array after the other."""
    out = io.BytesIO()
    _write_json(out, [[[name, _kind(column)] for name, column in message] for message in messages])
    for message in messages:
        for _, column in message:
            for part in column if isinstance(column, tuple) else (column,):
                if isinstance(part, list):
                    _write_json(out, [_tagged(cell) for cell in part])
                else:
                    np.save(out, part, allow_pickle=False)
    return out.getvalue()


def _kind(column: Column) -> str:
    if isinstance(column, tuple):
        return "text" if isinstance(column[1], list) else "masked"
    return "cells" if isinstance(column, list) else "array"


def from_bytes(data: bytes) -> list[Message]:
    """What `to_bytes` wrote. Raises ValueError if it did not."""
    source = io.BytesIO(data)

    def column(kind: str) -> Any:
        if kind == "cells":
            return [_untagged(cell) for cell in _read_json(source)]
        values = np.load(source, allow_pickle=False)
        if kind == "array":
            return values
        return values, np.load(source, allow_pickle=False) if kind == "masked" else _read_json(source)

    try:
        return [[(name, column(kind)) for name, kind in columns] for columns in _read_json(source)]
    except (EOFError, KeyError, TypeError) as error:
        raise ValueError(f"not a table: {error}") from None


def _write_json(out: io.BytesIO, value: object) -> None:
    # ASCII with escapes, so that even half a surrogate pair in a label survives.
    np.save(out, np.frombuffer(json.dumps(value).encode("ascii"), dtype=np.uint8), allow_pickle=False)


def _read_json(source: io.BytesIO) -> Any:
    return json.loads(np.load(source, allow_pickle=False).tobytes())


_TAGGED = {"decimal": Decimal, "fraction": Fraction, "unknown": Unknown}


def _tagged(cell: object) -> object:
    for tag, kind in _TAGGED.items():
        if isinstance(cell, kind):
            return {tag: cell.text if isinstance(cell, Unknown) else str(cell)}
    return cell


def _untagged(cell: object) -> object:
    if isinstance(cell, dict):
        [(tag, text)] = cell.items()
        return _TAGGED[tag](text)
    return cell
