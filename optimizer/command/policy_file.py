"""A policy as a TOML file: the arguments of `Rebalancer`, one to one.

Which keys a table takes, of which type and with which default, is read from the signatures of the classes
themselves, so that a new rule or cost can stand in files as soon as it exists. The key `type` names the class;
an argument that ends in an underscore (`except_`) loses it. Where Python takes a DataFrame or a Series, a file
has the path of a CSV file, relative to its own folder. Code is never read from a file: there is no `Custom`.
"""

from __future__ import annotations

import csv
import hashlib
import inspect
import io
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from pathlib import Path
from types import SimpleNamespace, UnionType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import floats, number
from equipoise.optimizer.command.policy_text import HOMES, dumps, file_name, kinds
from equipoise.optimizer.portfolio.transfers import Transfer
from equipoise.optimizer.rebalancer import Rebalancer
from equipoise.optimizer.risk.models import Risk
from equipoise.optimizer.triggers import Trigger

if TYPE_CHECKING:
    import pandas as pd

_T = TypeVar("_T")
#: In a file of numbers: one that a parser of floats may round to 0, or to infinity.
_EXTREME = re.compile("[eE][+-]?[0-9]*[1-9][0-9]{2}|[0-9.]{100}")


class _Table:
    """Stands for a DataFrame in a signature: in a file, the path of a CSV file with labels on both axes."""


class _Column(Generic[_T]):
    """Stands for a Series: in a file, the path of a CSV file with a label and a number in each row."""


class _InMemory:
    """Stands for what only Python has, such as arrays, which carry no labels."""


# Names that the modules import for type checkers only, and those that mean something else in a file.
_NAMES = {
    "DataFrame": _Table,
    "Series": _Column,
    "ArrayLike": _InMemory,
    "Trigger": Trigger,
    "pd": SimpleNamespace(offsets=SimpleNamespace(BaseOffset=_InMemory)),
}
# How each kind of argument looks in TOML, as a type of tomllib's and in words.
_SHAPES: dict[Any, tuple[type | tuple[type, ...], str]] = {
    float: ((int, Decimal), "a number"),
    bool: (bool, "true or false"),
    str: (str, "text"),
    Literal: (str, "one of a few words"),
    _Table: (str, "the path of a CSV file"),
    _Column: (str, "the path of a CSV file"),
    tuple: (list, "a list"),
    Sequence: (list, "a list"),
    Iterable: (list, "a list"),
    Mapping: (dict, "a table by label"),
    **dict.fromkeys((*HOMES, Transfer), (dict, "a table")),
}


@dataclass(frozen=True, eq=False)
class PolicyFile:
    """A policy that was read: the `rebalancer`, and `text`, its canonical form, for the record.

    The canonical form does not depend on layout, comments, or defaults that are spelled out. Each data file
    is in it by the SHA-256 of its bytes.
    """

    rebalancer: Rebalancer
    text: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def load(path: str | Path, *, returns: str | Path | None = None, covariance: str | Path | None = None) -> PolicyFile:
    """Read a policy file. `returns` and `covariance` are files that replace what [risk] says under these keys.

    Raises InputError, naming file, table and key, unless everything in the file is understood.
    """
    path = Path(path)
    try:
        document = tomllib.loads(path.read_bytes().decode(), parse_float=_decimal)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not a TOML file: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    for key, file in (("returns", returns), ("covariance", covariance)):
        if file is not None:
            risk = document.setdefault("risk", {"type": "CovarianceRisk"})
            if isinstance(risk, dict):
                risk[key] = str(Path(file).absolute())
    reader = _Reader(path)
    rebalancer = reader.call(Rebalancer, document, "")
    return PolicyFile(rebalancer, dumps(rebalancer, reader.risk))


def _decimal(text: str) -> Decimal:
    """As it is written: a float would make 0 of 1e-400."""
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent of twenty digits
        return Decimal("NaN")


class _Reader:
    """Turns TOML values into arguments by their type hints. `risk` is the table [risk] in canonical form."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.risk: dict[str, object] | None = None

    def error(self, place: str, problem: str) -> InputError:
        return InputError(f"{self.path}: {place}{': ' if place else ''}{problem}")

    def call(self, make: Callable[..., _T], given: Mapping[str, object], place: str) -> _T:
        """make(**given), each value converted by the hint of its argument."""
        return self.made(make, self.arguments(make, given, place), place)

    def made(self, make: Callable[..., _T], arguments: Mapping[str, object], place: str) -> _T:
        try:
            return make(**arguments)
        except InputError as error:
            raise self.error(place, str(error)) from None
        except (TypeError, ValueError, ImportError) as error:
            raise self.error(place, str(error)) from error

    def arguments(self, make: Callable[..., object], given: Mapping[str, object], place: str) -> dict[str, object]:
        known = {file_name(name): parameter for name, parameter in inspect.signature(make).parameters.items()}
        hints = _hints(make)
        for key in given:
            if key not in known:
                raise self.error(place, f"unknown key {key!r}{_nearest(key, known)}; it takes {_listed(known)}")
        found = {}
        for key, parameter in known.items():
            if key in given:
                hint = hints[parameter.name]
                where = ", ".join(filter(None, [place, _heading(key, hint)]))
                found[parameter.name] = self.value(given[key], hint, where, endless=parameter.default == math.inf)
            elif parameter.default is parameter.empty:
                raise self.error(place, f"the key {key!r} is missing")
        return found

    def value(self, given: object, hint: Any, place: str, *, endless: bool = False) -> object:
        """This value as the hint wants it; `endless`: infinity is allowed."""
        hints = [one for one in _either(hint) if (get_origin(one) or one) in _SHAPES]
        fitting = [one for one in hints if _fits(given, one)]
        if not fitting:
            wanted = " or ".join(dict.fromkeys(_SHAPES[get_origin(one) or one][1] for one in hints))
            raise self.error(place, f"must be {wanted or 'left to Python'}, not {_shown(given)}")
        for one in fitting[:-1]:
            try:
                return self._converted(given, one, place, endless)
            except InputError:
                continue
        return self._converted(given, fitting[-1], place, endless)

    def _converted(self, given: Any, hint: Any, place: str, endless: bool) -> Any:
        kind, of = get_origin(hint) or hint, get_args(hint)
        if kind in HOMES:
            return self._object(given, kind, place)
        if kind is Transfer:
            return self.call(Transfer, given, place)
        if kind is float:
            return self._number(given, place, endless)
        if kind is Literal and given not in of:
            raise self.error(place, f"must be one of {_listed(of)}, not {_shown(given)}")
        if kind in (_Table, _Column):
            return self._frame(given, place, one_column=kind is _Column)
        if kind is Mapping:
            return self._mapping(given, of[1], place)
        if kind in (tuple, Sequence, Iterable):
            return self._sequence(given, kind, of, place)
        return given

    def _mapping(self, given: Mapping[str, object], hint: object, place: str) -> dict[str, object]:
        return {name: self.value(one, hint, f"{place}, entry {name!r}") for name, one in given.items()}

    def _sequence(self, given: list[object], kind: object, of: tuple[object, ...], place: str) -> tuple[object, ...]:
        each = kind is tuple and of[-1] is not Ellipsis
        if each and len(given) != len(of):
            raise self.error(place, f"must have {len(of)} entries, not {len(given)}")
        hints = of if each else of[:1] * len(given)
        number = f"{place} " if of[0] in (*HOMES, Transfer) else f"{place}, entry "
        pairs = enumerate(zip(given, hints, strict=True), start=1)
        return tuple(self.value(one, wanted, f"{number}{i}") for i, (one, wanted) in pairs)

    def _number(self, given: object, place: str, endless: bool) -> float:
        if endless and given == math.inf:
            return math.inf
        try:
            return number(given, None, "")
        except InputError as error:
            raise self.error(f"{place}, value {_shown(error.value)}", error.problem) from None

    def _object(self, given: Mapping[str, object], base: type, place: str) -> object:
        known, name = kinds(base), given.get("type")
        if not isinstance(name, str) or name not in known:
            found = f"unknown type {_shown(name)}{_nearest(name, known)}" if "type" in given else "no key 'type'"
            raise self.error(place, f"{found}; it is one of {_listed(known)}")
        place, kind = f"{place} ({name})", known[name]
        if any(get_origin(one) is Callable for hint in _hints(kind).values() for one in _either(hint)):
            raise self.error(place, "is Python code, which is never read from a file; make the Rebalancer in Python")
        rest = {key: value for key, value in given.items() if key != "type"}
        return self._risk(kind, rest, place) if base is Risk else self.call(kind, rest, place)

    def _risk(self, kind: type, given: Mapping[str, object], place: str) -> object:
        """A risk model can be made from one of several kinds of data, each by a constructor of its own."""
        ways = {file_name(next(iter(inspect.signature(way).parameters), "")): way for way in _constructors(kind)}
        named = [key for key in ways if key in given]
        if len(ways) > 1 and len(named) != 1:
            raise self.error(place, f"takes exactly one of {_listed(ways)}, not {' and '.join(named) or 'none'}")
        way = ways[named[0]] if named else kind
        arguments, defaults = self.arguments(way, given, place), inspect.signature(way).parameters
        canonical = {name: getattr(value, "attrs", {}).get("sha256", value) for name, value in arguments.items()}
        changed = {file_name(name): one for name, one in canonical.items() if one != defaults[name].default}
        self.risk = {"type": kind.__name__} | changed
        return self.made(way, arguments, place)

    def _frame(self, given: str, place: str, *, one_column: bool) -> pd.DataFrame | pd.Series[float]:
        """A CSV file of numbers, with labels in its first row and its first column, which stay the text they are."""
        import pandas as pd

        path = self.path.parent / given
        place = f"{place}, file {str(path)!r}"
        try:
            data = path.read_bytes()
            text = data.decode("utf-8-sig")
            header = next(csv.reader(io.StringIO(text)), [])
            names = range(len(header))
            read_as: Any = str if _EXTREME.search(text) else {0: str}
            rows = pd.read_csv(
                io.StringIO(text), header=0, names=names, dtype=read_as, keep_default_na=False, na_values=[""]
            )
        except OSError as error:
            raise self.error(place, f"cannot be read: {error.strerror}") from None
        except (ValueError, csv.Error) as error:  # not UTF-8, not a table, no possible path
            raise self.error(place, f"is not a table: {error}") from None
        if len(header) < 2 or not isinstance(rows.index, pd.RangeIndex) or rows[0].isna().any():
            raise self.error(place, "needs a label and at least one number in every row, and as many cells in each")
        for column in names[1:]:
            rows[column] = self._floats(rows[column], rows[0], f"column {header[column]!r}", place)
        frame = rows.set_index(0).set_axis(header[1:], axis=1)
        result = self._only_column(frame, place) if one_column else frame
        result.attrs["sha256"] = f"sha256:{hashlib.sha256(data).hexdigest()}"
        return result

    def _only_column(self, frame: pd.DataFrame, place: str) -> pd.Series[float]:
        if len(frame.columns) != 1:
            raise self.error(place, f"must have two columns, label and number, not {1 + len(frame.columns)}")
        return frame.iloc[:, 0]

    def _floats(self, column: pd.Series[Any], labels: pd.Series[str], name: str, place: str) -> NDArray[np.float64]:
        """The numbers of a column; what is none is said with its label."""
        cells = column.to_numpy()
        values, wrong = floats(cells)
        for at in np.flatnonzero(wrong & column.notna())[:1]:
            self._number(cells[at : at + 1].tolist()[0], f"{place}, row {labels.iloc[at]!r}, {name}", endless=False)
        return values


def _hints(make: Callable[..., Any]) -> dict[str, Any]:
    """The type hint of each argument; those of a dataclass are its fields'."""
    parameters = getattr(make, "__dataclass_params__", None)
    source = make if parameters is not None and parameters.init else getattr(make, "__init__", make)
    return get_type_hints(make if inspect.ismethod(make) else source, localns=_NAMES)


def _either(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(given: object, hint: Any) -> bool:
    shape = _SHAPES[get_origin(hint) or hint][0]
    return isinstance(given, shape) and (not isinstance(given, bool) or shape is bool)


def _heading(key: str, hint: Any) -> str:
    """How the key is written: a table, tables one after the other, or a value."""
    of = _either(hint)
    if any(one in HOMES for one in of):
        return f"[{key}]"
    tables = (*HOMES, Transfer)
    return f"[[{key}]]" if any(get_args(one)[:1] and get_args(one)[0] in tables for one in of) else f"key {key!r}"


def _constructors(kind: type) -> list[Callable[..., object]]:
    """The class, and its class methods from_..."""
    return [kind, *(getattr(kind, name) for name in vars(kind) if name.startswith("from_"))]


def _nearest(given: object, known: Iterable[str]) -> str:
    near = get_close_matches(str(given), list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names)) or "nothing"


def _shown(given: object) -> str:
    if isinstance(given, dict | list):
        return "a table" if isinstance(given, dict) else "a list"
    text = str(given).lower().replace("infinity", "inf") if isinstance(given, bool | Decimal) else repr(given)
    return text if len(text) <= 60 else f"{text[:57]}..."
