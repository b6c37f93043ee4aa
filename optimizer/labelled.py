"""Tables and arrays with labels, read and checked: what the risk models are made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.base import Array
from equipoise.constraints.errors import InputError

Labels: TypeAlias = tuple[Any, ...]

TRANSPOSED = "; loadings looks transposed: factors are its rows and assets its columns, so pass loadings.T"


def is_frame(table: Any) -> bool:
    return hasattr(table, "columns") and hasattr(table, "index")  # an array should not have to import pandas


def labelled_table(table: Any, labels: Iterable[Any] | None, column: str) -> tuple[Array, Labels, Labels]:
    """Numbers, labels of the rows and of the columns: a DataFrame's, or an array's with labelled columns."""
    if is_frame(table) != (labels is None):
        problem = "labels are given once: a DataFrame carries its own, an array needs assets=[...]"
        raise InputError(problem, column=column)
    values = numbers(table, column)
    columns = unique(table.columns if labels is None else labels, column)
    if values.ndim != 2 or values.shape[1] != len(columns):
        problem = f"its shape is {values.shape}, and {len(columns)} labels need as many columns"
        swapped = column == "loadings" and len(values) == len(columns)
        raise InputError(problem + (TRANSPOSED if swapped else ""), column=column)
    return values, tuple(table.index) if labels is None else tuple(range(len(values))), columns


def labelled_square(table: Any, labels: Iterable[Any] | None, column: str) -> tuple[Array, Labels]:
    """A matrix with the same labels on both axes, the rows brought into the order of the columns."""
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


def numbers(given: Any, column: str) -> Array:
    try:
        if is_frame(given):
            return np.asarray(given.to_numpy(dtype=np.float64, na_value=np.nan))
        return np.array(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"it must hold numbers only ({error})", column=column) from None


def unique(labels: Iterable[Any], column: str) -> Labels:
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
    bad: NDArray[np.bool_],
    values: Array,
    column: str,
    problem: str,
    labels: Labels,
    rows: Labels | None = None,
) -> None:
    """InputError for the first bad entry, naming its asset, its pair of assets, or its row and asset."""
    for place in np.argwhere(bad)[:1]:
        value = float(values[tuple(place)])
        if rows is not None:
            problem = f"row {str(rows[place[0]])!r}: {problem}"
        names = tuple(dict.fromkeys(labels[i] for i in (place if rows is None else place[1:])))
        raise InputError(problem, asset=names if len(names) > 1 else names[0], column=column, value=value)
