"""A policy as TOML text, and the names that it has there."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from numbers import Real
from typing import Any

from equipoise.constraints.errors import InputError
from equipoise.constraints.rules.rule import Rule
from equipoise.optimizer.portfolio.transfers import Transfer
from equipoise.optimizer.problem.costs import Cost
from equipoise.optimizer.rebalancer import Rebalancer
from equipoise.optimizer.risk.models import Risk
from equipoise.optimizer.triggers import Trigger

#: What is written as a table with a `type`, and where the classes of each are.
HOMES: dict[Any, str] = {
    Rule: "equipoise.constraints",
    Cost: "equipoise.optimizer.problem.costs",
    Risk: "equipoise.optimizer.risk.models",
    Trigger: "equipoise.optimizer.triggers",
}
#: The one argument whose name is too short for a file.
_LONGER = {"cov": "covariance"}


def dumps(rebalancer: Rebalancer, risk: Mapping[str, object] | None = None) -> str:
    """The policy as TOML, for `policy_file.load`. A risk model does not remember its data: `risk` is its table [risk].

    Raises InputError for what no file can say, such as a `Custom` rule.
    """
    if risk is None and rebalancer.policy.risk is not None:
        raise InputError("a risk model does not remember its data: give dumps the table [risk] too", column="risk")
    lines, tables = [], []
    for name, value in _arguments(rebalancer, risk):
        if isinstance(value, tuple):
            for one in value:
                tables += ["", f"[[{name}]]", *_entries(_written(one))]
        elif isinstance(value, Mapping | Trigger):
            tables += ["", f"[{name}]", *_entries(_written(value))]
        elif value is not None and value is not False:
            lines += _entries({name: value})
    return "\n".join([*lines, *tables]) + "\n"


def _entries(table: Mapping[str, object]) -> list[str]:
    return [f"{_key(key)} = {_toml(value)}" for key, value in table.items()]


def _arguments(rebalancer: Rebalancer, risk: Mapping[str, object] | None) -> Iterator[tuple[str, object]]:
    """What the Rebalancer was made of."""
    given = {"risk": risk} | ({"cash": rebalancer.accounts} if rebalancer.accounts else {})
    for name in inspect.signature(Rebalancer).parameters:
        home = rebalancer if hasattr(rebalancer, name) else rebalancer.policy
        yield name, given[name] if name in given else getattr(home, name)


def kinds(base: Any) -> dict[str, type]:
    """The classes that a table of this kind can name."""
    found = vars(import_module(HOMES[base])).items()
    return {
        name: one
        for name, one in sorted(found)
        if isinstance(one, type) and issubclass(one, base) and one is not base and not name.startswith("_")
    }


def file_name(argument: str) -> str:
    return _LONGER.get(argument, argument.rstrip("_"))


def _written(one: Any) -> dict[str, object]:
    """A rule, cost or trigger as a table: its type, and the fields that are not at their default."""
    if isinstance(one, Mapping):
        return dict(one)
    name = type(one).__name__
    if isinstance(one, Transfer):
        return {f.name: value for f in fields(one) if (value := getattr(one, f.name)) != f.default}
    if not any(kinds(base).get(name) is type(one) for base in HOMES):
        raise InputError("is not one of the library's own, so no file can name it", column=name)
    given = ((f, getattr(one, f.name)) for f in fields(one))
    return {"type": name} | {file_name(f.name): value for f, value in given if value != f.default}


def _toml(value: object) -> str:
    """A value on one line of TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Real):
        return repr(float(value))
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if is_dataclass(value) and not isinstance(value, type):
        value = _written(value)
    if isinstance(value, Mapping):
        entries = ", ".join(_entries(value))
        return f"{{ {entries} }}" if entries else "{}"
    raise InputError("cannot be written to a file", value=value)


def _key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else _toml(name)
