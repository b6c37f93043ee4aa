"""How the functions of the modules `numba_*` become machine code, which numba keeps on disk.

numba by itself looks for changes in the file of the function that is called. But machine code has in it what that
function calls, from other files, and the layout of the tuples that it is given. So here it counts as old as soon as
any of these modules differs, or the version of numba or numpy. (The processor is part of numba's own key.) Whatever
machine code uses stands in a module of this name, or is handed over as numbers and arrays. Loading this loads numba.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import resources
from typing import TypeVar

import numba
import numpy as np

F = TypeVar("F", bound=Callable[..., object])


def jit(function: F) -> F:
    """Compiled when it is first called, and kept on disk where that is possible."""
    return _compiled(function, inline="never")


def part(function: F) -> F:
    """The same, as a part of the one function that calls it: a call would count references to every array."""
    return _compiled(function, inline="always")


def summed(function: F) -> F:
    """The same for long sums, which the processor takes side by side: in an order that depends on its kind."""
    return _compiled(function, inline="never", fastmath={"reassoc", "contract"})


def _compiled(function: F, **options: object) -> F:
    result = numba.njit(error_model="numpy", **options)(function)
    # RuntimeError, OSError: no directory can be written to. The others: another release of numba has other insides.
    with suppress(RuntimeError, OSError, ImportError, AttributeError, TypeError):
        result._cache = _kept(function)
    compiled: F = result
    return compiled


def _kept(function: Callable[..., object]) -> object:
    """numba's place on disk for this function's machine code, marked with `sources`."""
    from numba.core.caching import FunctionCache, IndexDataCacheFile

    place = FunctionCache(function)
    place._cache_file = IndexDataCacheFile(place._cache_path, place._impl.filename_base, sources())
    return place


@cache
def sources() -> str:
    """The SHA-256 of all that machine code is made of. Raises RuntimeError where there are no sources to read."""
    folder = resources.files(__package__ or "")
    files = sorted((file.name, file) for file in folder.iterdir() if _of_machine_code(file.name))
    if not files:
        raise RuntimeError("the sources of the machine code are not there")
    digest = hashlib.sha256(f"numba {numba.__version__}, numpy {np.__version__}".encode())
    for name, file in files:
        content = file.read_bytes()
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _of_machine_code(name: str) -> bool:
    return name.startswith("numba_") and name.endswith(".py")
