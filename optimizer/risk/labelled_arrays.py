"""Tables and arrays with labels, read and checked: what the risk models are made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any, NoReturn, TypeAlias

import numpy as np

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import Cells, blank, entries, floats, number
from equipoise.constraints.pieces import Array, Mask

#: Of assets, which are texts, or of factors and rows, which need not be.
Labels: TypeAlias = tuple[Any, ...]
#: A DataFrame, a Series, a mapping or an array: told apart by what they have, without importing pandas.
Table: TypeAlias = Any

TRANSPOSED = "; loadings looks transposed: factors are its rows and assets its columns, so pass loadings.T"


def is_frame(table: Table) -> bool:
    return hasattr(table, "columns") and hasattr(table, "index")  # an array should not have to import pandas


def labelled_table(table: Table, labels: Iterable[Hashable] | None, column: str) -> tuple[Cells, Labels, Labels]:
    """Cells, labels of the rows and of the columns: a DataFrame's, or an array's with labelled columns."""
    if is_frame(table) != (labels is None):
        problem = "labels are given once: a DataFrame carries its own, an array needs assets=[...]"
        raise InputError(problem, column=column)
    values = cells_of(table, column)
    columns = unique(table.columns if labels is None else labels, column)
    if values.ndim != 2 or values.shape[1] != len(columns):
        problem = f"its shape is {values.shape}, and {len(columns)} labels need as many columns"
        swapped = column == "loadings" and len(values) == len(columns)
        raise InputError(problem + (TRANSPOSED if swapped else ""), column=column)
    return values, tuple(table.index) if labels is None else tuple(range(len(values))), columns


def labelled_square(table: Table, labels: Iterable[Hashable] | None, column: str) -> tuple[Cells, Labels]:
    """The cells of a matrix with the same labels on both axes, the rows brought into the order of the columns."""
    values, rows, columns = labelled_table(table, labels, column)
    if labels is None:
        at = {label: i for i, label in enumerate(unique(rows, column))}
        for odd in sorted(at.keys() ^ set(columns), key=str):
            axis = "row" if odd in at else "column"
            problem = f"every label needs a row and a column, and it has only a {axis}"
            raise InputError(problem, asset=odd, column=column)
        order = [at[label] for label in columns]
        values = values if order == list(range(len(order))) else values[order]
    elif len(values) != len(columns):
        raise InputError(f"the matrix must be square, and its shape is {values.shape}", column=column)
    return values, columns


def cells_of(given: Table, column: str) -> Cells:
    """What a table or array holds, as it is: `numbers` reads it, when it is known which of it is used."""
    try:
        if not is_frame(given):
            return entries(given)
        numeric = all(dtype.kind in "iuf" for dtype in given.dtypes)
        return np.asarray(given.to_numpy(np.float64, na_value=np.nan) if numeric else given.to_numpy(object))
    except (TypeError, ValueError) as error:
        raise InputError(f"it must hold numbers only ({error})", column=column) from None


def numbers(cells: Cells, column: str, problem: str, labels: Labels, rows: Labels | None = None) -> Array:
    """The cells as floats, or an InputError for the first that is no number, naming its place as `forbid` does.

    `problem` is what is said of blanks and infinities.
    """
    values, wrong = floats(cells)
    for place in map(tuple, np.argwhere(wrong)[:1]):
        value = cells[place]
        if not blank(value) and not (isinstance(value, float) and np.isinf(value)):
            try:
                number(value, None, column)
            except InputError as error:
                problem, value = error.problem, error.value
        _refuse(place, value, column, problem, labels, rows)
    return values


def unique(labels: Iterable[Hashable], column: str) -> Labels:
    counts = Counter(labels)
    for label in [label for label, times in counts.items() if times > 1][:1]:
        raise InputError("the label occurs more than once; labels must be unique", asset=label, column=column)
    return tuple(counts)


def names(riskless: Iterable[str]) -> tuple[str, ...]:
    if isinstance(riskless, str):  # or every letter would become a label
        raise InputError(f"riskless is a list of labels; write riskless=[{riskless!r}]")
    return tuple(riskless)


def risky(labels: Labels, riskless: Labels) -> tuple[Labels, list[int]]:
    at = [i for i, label in enumerate(labels) if label not in riskless]
    return tuple(labels[i] for i in at), at


def forbid(
    bad: Mask,
    values: Array,
    column: str,
    problem: str,
    labels: Labels,
    rows: Labels | None = None,
) -> None:
    """InputError for the first bad entry, naming its asset, its pair of assets, or its row and asset."""
    for place in map(tuple, np.argwhere(bad)[:1]):
        _refuse(place, float(values[place]), column, problem, labels, rows)


def _refuse(
    place: tuple[int, ...], value: object, column: str, problem: str, labels: Labels, rows: Labels | None
) -> NoReturn:
    if rows is not None:
        problem = f"row {str(rows[place[0]])!r}: {problem}"
    names = tuple(dict.fromkeys(labels[i] for i in (place if rows is None else place[1:])))
    raise InputError(problem, asset=names if len(names) > 1 else names[0], column=column, value=value)
