"""Text as cells of CSV files, and back; exact numbers in full.

Spreadsheets run a cell that begins with = + - @ as a formula, and terminals obey control characters: such text is
`guarded` in CSV files, and `unguarded` gives it back to the letter. Numbers are never touched.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from numbers import Real

#: The version of the layout of files of plans; it changes when a reader would have to.
SCHEMA_VERSION = 1
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20", "\n")  # half and full width
_ESCAPE = re.compile(r"\\(?:\\|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")


def csv_text(records: Iterable[Mapping[str, object]], columns: Sequence[str]) -> str:
    """A CSV table; blank where there is no (finite) number."""
    rows = [columns, *([_cell(record[column]) for column in columns] for record in records)]
    return "".join(",".join(map(_quoted, row)) + "\n" for row in rows)


def guarded(text: str) -> str:
    """The text as a cell of a CSV file: another for every other text, and nothing that a program would run.

    As it is, unless it begins (after spaces) with a sign that begins a formula, or with an apostrophe, or has a
    character that is not printed (a line break within it apart). Then an apostrophe stands in front, a backslash is
    doubled, and what is not printed is \\xNN, \\uNNNN or \\UNNNNNNNN.
    """
    printed = text.replace("\n", " ").isprintable()
    if printed and not text.startswith("'") and not text.lstrip(" ").startswith(_FORMULA):
        return text
    return "'" + "".join(_escaped(c) for c in text)


def unguarded(cell: str) -> str:
    """The text that `guarded` made this cell of."""
    if not cell.startswith("'"):
        return cell
    return _ESCAPE.sub(lambda found: chr(int(next(filter(None, found.groups()), "5c"), 16)), cell[1:])


def decimal(number: Fraction) -> str:
    """The number in full: as a decimal where it has an end, else as a fraction."""
    digits, rest = 0, number.denominator
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest //= prime
            power += 1
        digits = max(digits, power)
    if rest != 1:
        return str(number)
    shifted = abs(number.numerator) * 10**digits // number.denominator
    whole, part = divmod(shifted, 10**digits)
    text = f"{whole}.{part:0{digits}d}" if digits else str(whole)
    return f"-{text}" if number < 0 else text


def plain(value: object) -> object:
    """For JSON: exact numbers as text, null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, Fraction):
        return decimal(value)
    if isinstance(value, Real) and not isinstance(value, int):
        return float(value) if math.isfinite(value) else None
    return None if type(value).__name__ == "NAType" else value


def _quoted(cell: str) -> str:
    # Python's csv module (before 3.13) leaves a carriage return bare, at which readers start a new row.
    return '"' + cell.replace('"', '""') + '"' if set(cell) & set(',"\r\n') else cell


def _escaped(c: str) -> str:
    if c == "\\":
        return c + c
    if c.isprintable():
        return c
    code = ord(c)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _cell(value: object) -> str:
    if isinstance(value, str):
        return guarded(value)
    number = plain(value)
    return "" if number is None else repr(number) if isinstance(number, float) else str(number)
