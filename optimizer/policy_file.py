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
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from numbers import Real
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from equipoise.constraints.base import Rule
from equipoise.constraints.errors import InputError
from equipoise.optimizer.costs import Cost
from equipoise.optimizer.rebalancer import Rebalancer
from equipoise.optimizer.risk import Risk
from equipoise.optimizer.triggers import Trigger

if TYPE_CHECKING:
    import pandas as pd

_T = TypeVar("_T")
#: What is written as a table with a `type`, and where the classes of each are.
_HOMES: dict[Any, str] = {
    Rule: "equipoise.constraints",
    Cost: "equipoise.optimizer.costs",
    Risk: "equipoise.optimizer.risk",
    Trigger: "equipoise.optimizer.triggers",
}
#: The one argument whose name is too short for a file.
_LONGER = {"cov": "covariance"}


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
    float: ((int, float), "a number"),
    bool: (bool, "true or false"),
    str: (str, "text"),
    Literal: (str, "one of a few words"),
    _Table: (str, "the path of a CSV file"),
    _Column: (str, "the path of a CSV file"),
    tuple: (list, "a list"),
    Sequence: (list, "a list"),
    Iterable: (list, "a list"),
    Mapping: (dict, "a table by label"),
    **{base: (dict, "a table") for base in _HOMES},
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
        document = tomllib.loads(path.read_bytes().decode())
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


def dumps(rebalancer: Rebalancer, risk: Mapping[str, Any] | None = None) -> str:
    """The policy as TOML, for `load`. A risk model does not remember its data: `risk` is its table [risk].

    Raises InputError for what no file can say, such as a `Custom` rule.
    """
    if risk is None and rebalancer.policy.risk is not None:
        raise InputError("a risk model does not remember its data: give dumps the table [risk] too", column="risk")
    lines, tables = [], []
    for name in inspect.signature(Rebalancer).parameters:
        value = getattr(rebalancer if hasattr(rebalancer, name) else rebalancer.policy, name)
        if name == "risk":
            value = risk
        if isinstance(value, tuple):
            tables += [(f"[[{name}]]", _written(one)) for one in value]
        elif isinstance(value, Mapping | Trigger):
            tables.append((f"[{name}]", _written(value)))
        elif value is not None:
            lines.append(f"{name} = {_toml(value)}")
    for heading, table in tables:
        lines += ["", heading, *(f"{_key(key)} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


class _Reader:
    """Turns TOML values into arguments by their type hints. `risk` is the table [risk] in canonical form."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.risk: dict[str, Any] | None = None

    def error(self, place: str, problem: str) -> InputError:
        return InputError(f"{self.path}: {place}{': ' if place else ''}{problem}")

    def call(self, make: Callable[..., _T], given: Mapping[str, Any], place: str) -> _T:
        """make(**given), each value converted by the hint of its argument."""
        known = {_file_name(name): parameter for name, parameter in inspect.signature(make).parameters.items()}
        hints = _hints(make)
        for key in given:
            if key not in known:
                raise self.error(place, f"unknown key {key!r}{_nearest(key, known)}; it takes {_listed(known)}")
        arguments = {}
        for key, parameter in known.items():
            if key in given:
                hint = hints[parameter.name]
                where = ", ".join(filter(None, [place, _heading(key, hint)]))
                arguments[key] = self.value(given[key], hint, where, endless=parameter.default == math.inf)
            elif parameter.default is parameter.empty:
                raise self.error(place, f"the key {key!r} is missing")
        if get_origin(make) is None and any(issubclass(type(make), type) and make is risk for risk in ()):
            raise AssertionError
        try:
            return make(**{known[key].name: value for key, value in arguments.items()})
        except InputError as error:
            raise self.error(place, str(error)) from None
        except (TypeError, ValueError, ImportError) as error:
            raise self.error(place, str(error)) from error
