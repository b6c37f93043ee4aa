"""What a policy is, as one number: equal for equal policies, in every process and on every day.

`policy_digest` walks through its risk, costs, rules and settings: through dataclasses by their fields,
through arrays by their bytes, through functions (of `Custom` rules, or of rules of a user's own) by their code,
defaults, closures and the globals that they name. Code of this library and of its dependencies is known by the
versions, which are part of a run's identity too.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.errors import InputError

if TYPE_CHECKING:
    from equipoise.optimizer.problem.policy import Policy

#: What can change a figure.
PACKAGES = ("equipoise", "numpy", "scipy", "pandas", "cvxpy", "clarabel", "scs", "highspy", "numba")


def versions() -> dict[str, str]:
    """Of Python, the machine's architecture and kernels, and every package that can change a figure."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "kernels": kernels()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def kernels() -> str:
    """The first digits of the SHA-256 of some sums, products and exponentials: what the last bits depend on.

    numpy and its linear algebra choose their loops by the processor, and each kind of them rounds in its own order.
    """
    x = np.arange(1.0, 64.0 * 101 + 1).reshape(64, 101) % 7.3
    product = x @ x.T
    parts = (product, x @ x[0], np.linalg.solve(product + np.eye(64), x[:, 0]), np.exp(x), np.log(x + 1.0))
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:12]


def policy_digest(policy: Policy) -> str:
    """The SHA-256 of all that decides on a plan; not of the trigger. Raises InputError for what has no fixed form."""
    try:
        return _Walk([policy]).digest.hexdigest()
    except RecursionError:
        raise InputError("a policy that contains itself can have no checkpoint", column="checkpoint") from None


def text_digest(texts: Iterable[str]) -> str:
    """The SHA-256 of a set of texts."""
    return hashlib.sha256(repr(sorted(texts)).encode("ascii", "backslashreplace")).hexdigest()


class _Walk:
    """Through a value and all that it is made of."""

    def __init__(self, value: object) -> None:
        self.digest = hashlib.sha256()
        self._met: dict[types.FunctionType | type, int] = {}  # functions call each other in circles
        self._visit(value)

    def _visit(self, value: object) -> None:
        if isinstance(value, bool | int | str | bytes | complex | types.NoneType):
            self._add(f"{type(value).__name__} {value!r}".encode("utf-8", "backslashreplace"))
        elif isinstance(value, float):
            self._add(b"float " + value.hex().encode())
        elif isinstance(value, memoryview):
            self._add(value.tobytes())
        elif isinstance(value, types.FunctionType | type) and value in self._met:
            self._add(b"again %d" % self._met[value])
        else:
            if isinstance(value, types.FunctionType | type):
                self._met[value] = len(self._met)
            parts = list(_parts(value))
            self._add(f"{type(value).__module__}.{type(value).__qualname__} of {len(parts)}".encode())
            for part in parts:
                self._visit(part)

    def _add(self, content: bytes) -> None:
        self.digest.update(b"%d:" % len(content))
        self.digest.update(content)


def _parts(value: object) -> Iterable[object]:
    """What a value is made of, in a fixed order."""
    for kind, parts in _PARTS:
        if isinstance(value, kind):
            return parts(value)
    return _of_dataclass(value) if is_dataclass(value) else _of_object(value)


def _of_array(value: NDArray[np.generic] | np.generic) -> Iterable[object]:
    array = np.asarray(value)
    cells = array.ravel().tolist() if array.dtype.hasobject else memoryview(array.tobytes())
    return [array.dtype.str, list(array.shape), cells]


def _of_enum(value: Enum) -> Iterable[object]:
    return [value.name]


def _of_code(value: types.CodeType) -> Iterable[object]:
    return [value.co_code, value.co_names, value.co_varnames, list(value.co_consts)]


def _of_named(value: types.ModuleType | types.BuiltinFunctionType | np.ufunc) -> Iterable[object]:
    return [value.__name__]


def _of_method(value: types.MethodType) -> Iterable[object]:
    return [value.__func__, value.__self__]


def _of_mapping(value: Mapping[object, object]) -> Iterable[object]:
    return [part for key in sorted(value, key=_order) for part in (key, value[key])]


def _of_set(value: Set[object]) -> Iterable[object]:
    return sorted(value, key=_order)


def _of_sequence(value: Sequence[object]) -> Iterable[object]:
    return value


def _of_dataclass(value: Any) -> Iterable[object]:
    return [type(value), *chain.from_iterable((f.name, getattr(value, f.name)) for f in fields(value))]


def _of_object(value: object) -> Iterable[object]:
    """What an object says about itself to be copied."""
    try:
        made = value.__reduce_ex__(4)
    except Exception as error:
        raise InputError(
            f"a checkpoint cannot tell whether this is the same in another run ({type(error).__name__}: {error}); "
            "use numbers, arrays, dataclasses and functions in rules",
            column="checkpoint",
            value=type(value),
        ) from error
    if isinstance(made, str):
        return [made]
    return [*_name(type(value)), *(list(part) if isinstance(part, Iterator) else part for part in made[1:5])]


def _of_function(function: types.FunctionType) -> Iterable[object]:
    yield from _name(function)
    if not _known(function):
        yield from _inside_function(function)


def _inside_function(function: types.FunctionType) -> Iterable[object]:
    cells = function.__closure__ or ()
    used = {name: function.__globals__[name] for name in _global_names(function.__code__, function.__globals__)}
    return [function.__code__, function.__defaults__, function.__kwdefaults__, [c.cell_contents for c in cells], used]


def _of_class(kind: type) -> Iterable[object]:
    yield from _name(kind)
    if not _known(kind):
        yield from _inside_class(kind)


def _inside_class(kind: type) -> Iterable[object]:
    """Its bases, methods and constants."""
    yield kind.__bases__
    for name, value in sorted(vars(kind).items()):
        inner = getattr(value, "__func__", None) or getattr(value, "fget", None) or getattr(value, "func", value)
        constant = isinstance(value, bool | int | float | str | tuple | np.ndarray) and not name.startswith("__")
        if constant or isinstance(inner, types.FunctionType):
            yield name
            yield inner


def _global_names(code: types.CodeType, known: Mapping[str, object]) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return {name for name in code.co_names if name in known}.union(*(_global_names(c, known) for c in inner))


def _name(value: types.FunctionType | type) -> list[str]:
    return [value.__module__ or "", value.__qualname__]


def _known(value: types.FunctionType | type) -> bool:
    """Whether it is not of the user's own making: a version, or at least its name, says what it does."""
    name = value.__module__ or ""
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    root = name.partition(".")[0]
    installed = "site-packages" in file or "dist-packages" in file
    return root in PACKAGES or root in sys.stdlib_module_names - {"__main__"} or installed


def _order(key: object) -> str:
    return _Walk(key).digest.hexdigest()


#: What a value of each kind is made of; the first kind that it is of counts.
_PARTS: tuple[tuple[Any, Callable[[Any], Iterable[object]]], ...] = (
    ((np.ndarray, np.generic), _of_array),
    (Enum, _of_enum),
    (types.FunctionType, _of_function),
    (types.CodeType, _of_code),
    (type, _of_class),
    ((types.ModuleType, types.BuiltinFunctionType, np.ufunc), _of_named),
    (types.MethodType, _of_method),
    (Mapping, _of_mapping),
    (Set, _of_set),
    ((list, tuple), _of_sequence),
)
