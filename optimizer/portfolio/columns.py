"""Columns of a long table as arrays: labels as codes, numbers as floats. What is neither is marked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from equipoise.constraints.numbers import LARGEST, SMALLEST, blank
from equipoise.constraints.pieces import Array, Indices, Mask

if TYPE_CHECKING:
    import pandas as pd

Column: TypeAlias = "pd.Series[Any]"
#: Codes of cells that are empty, and of those that are no labels.
BLANK, WRONG = -1, -2
_LARGEST_WHOLE = 2**53  # beyond, not every integer is a float
# With 15 digits at most, a decimal number and the float next to it are written alike.
_SHORT_NUMBER = re.compile(r"[+-]?(?=[0-9.]{1,15}\Z)(?:[0-9]+\.?[0-9]*|\.[0-9]+)")


@dataclass(frozen=True, eq=False)
class Coded:
    """A column of labels: cell i is `names[codes[i]]`, or BLANK or WRONG. Not every name need have a cell."""

    names: tuple[str, ...]
    codes: Indices

    def ordered(self) -> Coded:
        """The same with its names in sorted order."""
        order = sorted(range(len(self.names)), key=self.names.__getitem__)
        places = np.append(np.argsort(order), [WRONG, BLANK])
        return Coded(tuple(self.names[i] for i in order), places[self.codes])


def coded(column: Column, *, whole: bool = False) -> Coded:
    """The labels of a column: text, and with `whole` integers too, which are the text that shows them."""
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        categories = coded(pd.Series(column.cat.categories), whole=whole)
        return Coded(categories.names, np.append(categories.codes, BLANK)[column.cat.codes])
    if _is_text(column) or (whole and pd.api.types.is_integer_dtype(column.dtype)):
        codes, found = pd.factorize(column)
        names = tuple(map(str, np.asarray(found, dtype=object)))
        if "" in names:
            codes = np.where(codes == names.index(""), BLANK, codes)
        return Coded(names, codes)
    seen: dict[str, int] = {}
    cells = [label(cell, whole=whole) for cell in np.asarray(column, dtype=object)]
    each = [cell if isinstance(cell, int) else seen.setdefault(cell, len(seen)) for cell in cells]
    return Coded(tuple(seen), np.array(each, dtype=np.intp))


def _is_text(column: Column) -> bool:
    import pandas as pd

    if isinstance(column.dtype, pd.StringDtype):
        return True
    return column.dtype == object and pd.api.types.infer_dtype(column, skipna=True) == "string"


def label(cell: object, *, whole: bool) -> str | int:
    """The label of a cell, or BLANK or WRONG; see `coded`."""
    if blank(cell):
        return BLANK
    if isinstance(cell, str) or (whole and (type(cell) is int or isinstance(cell, np.integer))):
        return str(cell)
    return WRONG


def floats(column: Column) -> tuple[Array, Mask]:
    """The numbers of a column, NaN where the cell is blank, and the mask of cells that are no plain numbers.

    A plain number is one whose decimal value its float alone tells: a float, an integer up to 2⁵³, or a text of
    at most 15 digits, of a size that `numbers` allows. The others may still be numbers: `Portfolio` takes them cell
    by cell.
    """
    values, strange = _floats(column)
    size = np.abs(values)
    return values, strange | (size > LARGEST) | ((size < SMALLEST) & (size > 0))


def _floats(column: Column) -> tuple[Array, Mask]:
    import pandas as pd

    whole = pd.api.types.is_integer_dtype(column.dtype)
    if whole or pd.api.types.is_float_dtype(column.dtype):
        own = isinstance(column.dtype, np.dtype)  # or one of pandas, which has blanks of its own
        values = column.to_numpy(np.float64) if own else column.to_numpy(np.float64, na_value=np.nan)
        return values, np.abs(values) > _LARGEST_WHOLE if whole else np.zeros(len(values), dtype=bool)
    found = [_plain(cell) for cell in np.asarray(column, dtype=object)]
    strange = np.array([number is None for number in found], dtype=bool)
    return np.array(found, dtype=np.float64), strange  # None becomes NaN


def _plain(cell: object) -> float | None:
    if type(cell) is float:
        return cell
    if blank(cell):
        return np.nan
    if isinstance(cell, bool | np.bool_ | np.timedelta64):  # a length of time is an integer to numpy
        return None
    if isinstance(cell, float | np.floating) or (isinstance(cell, str) and _SHORT_NUMBER.fullmatch(cell)):
        return float(cell)
    if isinstance(cell, int | np.integer) and abs(int(cell)) <= _LARGEST_WHOLE:
        return float(cell)
    return None
