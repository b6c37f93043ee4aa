"""What counts as a number, for every cell of a table, every entry of a mapping and every argument.

A number is an int, a float, a Decimal or a Fraction, or in a table a text of plain digits ("-1250.5", "1e-3"). It is
0, or its size lies between SMALLEST and LARGEST: beyond, products of prices, quantities and rates would leave the
range of floats. Booleans, bytes, "1_000", "1,000" and the digits of other scripts are none.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.constraints.errors import InputError

#: The cells of a table or an argument, of any type.
Cells: TypeAlias = NDArray[Any]

#: No number but 0 is smaller or larger in size than this; no price and no NAV either.
SMALLEST, LARGEST = 1e-100, 1e100
#: What the rounding of limits and weights to floating point may explain, in fractions of NAV.
ROUNDING_TOLERANCE = 1e-12
#: A convex answer counts only if no rule is broken by more than this fraction of NAV.
FEASIBILITY_TOLERANCE = 1e-9
_LONGEST = 1000  # characters of a number that is written as text
_SHOWN = 40  # characters of a cell in a message
_TEXT = re.compile(r"[ \t]*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[ \t]*")


def blank(value: object) -> bool:
    """Whether a cell is empty, whatever its type calls that."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, Decimal):
        return value.is_nan()
    return isinstance(value, str | float | np.floating) and (value != value or value == "")


def encodable(text: str) -> bool:
    """Whether a file can hold this text: not with half of a surrogate pair."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def number(value: object, asset: str | None, column: str) -> float:
    """This cell or argument as a float, or an InputError that names the place."""
    found = _float(value)
    if found is None:
        problem = "must be a number, finite and in plain digits; correct or remove it"
    elif abs(found) > LARGEST:
        problem = f"must be finite, and at most {LARGEST:g} in size; correct or remove it"
    elif abs(found) < SMALLEST and not _zero(value):
        problem = f"is nearer to 0 than {SMALLEST:g}, which nobody means; write 0, or use another unit"
    else:
        return found
    raise InputError(problem, asset=asset, column=column, value=_shortened(value))


def check_number(value: object, argument: str, *, at_least: float | None = None, above: float | None = None) -> None:
    """A finite number within its range, and no text, or an InputError that names the argument."""
    found = _float(value) if isinstance(value, int | float | np.number) else None
    if found is None or np.isinf(found):
        raise InputError("must be a finite number", column=argument, value=_shortened(value))
    number(value, None, argument)
    if at_least is not None and found < at_least:
        raise InputError(f"must be at least {at_least:g}", column=argument, value=value)
    if above is not None and found <= above:
        raise InputError(f"must be above {above:g}", column=argument, value=value)


def exact(value: float | Decimal | Fraction | str) -> Fraction:
    """The decimal number that a person sees: 0.1 is 1/10, whatever the float behind it is."""
    if isinstance(value, int | Decimal | Fraction | str) and not isinstance(value, bool):
        return Fraction(value)
    return Fraction(Decimal(repr(float(value))))  # much faster than from text


def entries(given: ArrayLike) -> Cells:
    """An argument as an array of what it holds: True stays True beside floats, and what is masked is None."""
    if isinstance(given, np.ma.MaskedArray):
        cells = np.array(given.data, dtype=object)
        cells[np.ma.getmaskarray(given)] = None
        return cells
    return np.asarray(given) if hasattr(given, "dtype") else np.array(given, dtype=object)


def floats(cells: Cells, *, text: bool = True) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """All cells of an array as floats, NaN or infinite where there is none, and the mask of those that `number`
    refuses. Without `text`, texts are refused too. Arrays of floats or integers are taken as a whole."""
    plain = cells.dtype.kind in "iuf" or (cells.dtype == object and all(map(_plain, set(map(type, cells.flat)))))
    values = _floats(cells, text=text, plain=plain)
    size = np.abs(values)
    wrong = np.asarray(~(size <= LARGEST))
    small = np.asarray(size < SMALLEST)
    if small.any():
        given = cells[small]
        wrong[small] = given != 0 if plain else [not _zero(cell) for cell in given]
    return values, wrong


def _floats(cells: Cells, *, text: bool, plain: bool) -> NDArray[np.float64]:
    if plain:
        try:
            return cells.astype(np.float64)
        except OverflowError:  # an integer among objects
            pass
    found = [None if isinstance(cell, str) and not text else _float(cell) for cell in cells.flat]
    return np.array(found, dtype=np.float64).reshape(cells.shape)  # None becomes NaN


def _plain(kind: type) -> bool:
    return issubclass(kind, float | int | np.floating | np.integer) and not issubclass(kind, bool | np.timedelta64)


def _float(value: object) -> float | None:
    """The nearest float, infinite for what is larger than all; None for what is no number."""
    if isinstance(value, str):
        plain = len(value) <= _LONGEST and _TEXT.fullmatch(value)
        return float(value) if plain else None
    if isinstance(value, bool | np.bool_ | np.timedelta64) or not isinstance(value, Real | Decimal):
        return None
    try:
        found = float(value)
    except OverflowError:
        return np.inf
    except ValueError:  # a signalling NaN
        return None
    return None if np.isnan(found) else found


def _zero(value: object) -> bool:
    if isinstance(value, str):
        return not set(re.split("[eE]", value)[0]) & set("123456789")
    return bool(value == 0)


def _shortened(value: object) -> object:
    # An integer of thousands of digits is refused by str() itself.
    if isinstance(value, str | bytes):
        return value[:_SHOWN]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**_SHOWN:
        return f"an integer of more than {_SHOWN} digits"
    return value
