"""A figure of the scorecard: what is measured, its target, its sizes, and what was found."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """A measured figure: `said` in words and numbers, whether the target is `kept`, and every case that missed it."""

    said: str
    kept: bool
    missed: tuple[str, ...] = ()


def counted(missed: list[str], tried: int, allowed: int = 0) -> Result:
    """So many of those tried missed the target, which allows so many."""
    return Result(f"{len(missed)} of {tried}", len(missed) <= allowed, tuple(missed))


@dataclass(frozen=True)
class Row:
    """One figure: its number, what it counts, its target, and `measure(count)`."""

    number: int
    figure: str
    target: str
    measure: Callable[[int], Result]
    quick: int  # the count in the suite: seconds at most
    full: int
    in_suite: bool = True  # False for times, which the suite never asserts


def rows() -> list[Row]:
    """The rows of all modules of this folder, by number."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
    modules = [importlib.import_module(f"scorecard.{name}") for name in names]
    return sorted((row for module in modules for row in getattr(module, "ROWS", ())), key=lambda row: row.number)
