"""A convex rule that is the worst of more rows than one can list; the worst at a point is easily found.

    row(w, z) + Σ terms(w, z) ≤ upper,          each term convex, the highest of a family of planes (see `terms`)

`support` is the highest row of the family at a point: nowhere above the rule, and equal to it there. Newton's method
needs only the few of them that it meets (Kelley 1960); the cvxpy program has the exact form (`modelled`), whose prices
choose one row that proves as much as all. So these rules are solved, certified and explained as rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from equipoise.constraints.base import Array, Parts, Row

#: Slopes by their name in `Parts`, and a constant: a float, or (B,).
Plane: TypeAlias = tuple[dict[str, Array], Any]


class Modelled(NamedTuple):
    """A term in cvxpy: its value, what must hold for that to be its value, and the plane that the prices choose.

    `plane(price)`, after a solve, with the price of the row that the value stands in: nowhere above the term, and
    equal to it at the answer; at a kink it is the one of all planes there with which the answer is optimal.
    """

    value: Any
    constraints: Sequence[Any]
    plane: Callable[[float], Plane]


class Term(Protocol):
    """A convex function of the weights, or of the trades."""

    @property
    def of_holdings(self) -> bool:
        """Whether it is one of what is held, not of the trades."""
        ...

    def of(self, weights: Array, trades: Array) -> Any:
        """Its value: a float, (B,), or a Fraction for arrays of Fractions."""
        ...

    def plane(self, weights: Array, trades: Array) -> Plane:
        """A plane that is nowhere above it, and equal to it here."""
        ...

    def modelled(self, parts: Mapping[str, Any]) -> Modelled:
        """The term in cvxpy, of one portfolio: `parts` are w, w⁺, w⁻, z⁺ and z⁻ by their names in `Parts`."""
        ...

    def shocked(self, low: Array, high: Array) -> Term:
        """At most this after each asset's price has moved to somewhere between low and high times what it was."""
        ...

    @property
    def steepness(self) -> Any:
        """A number (or (B,)) that the length of no plane's slopes is above."""
        ...


@dataclass(frozen=True, eq=False)
class Envelope:
    """row + Σ terms ≤ row.upper; label, limit and ratio are the row's."""

    row: Row
    terms: tuple[Term, ...]

    @property
    def label(self) -> str:
        return self.row.label

    def excess(self, weights: Array, trades: Array) -> Any:
        """By how much the rule is broken: a float, or (B,)."""
        return self.row.of(weights, trades) - self.row.upper + sum(term.of(weights, trades) for term in self.terms)

    def over(self, weights: Array, trades: Array) -> float:
        """`excess` of one portfolio, raised by more than its rounding error (see `verify_stack`)."""
        rounding = 4.0 * (len(weights) + 16) * 2.0**-53 * (1.0 + self.steepness) * (1.0 + np.abs(weights).sum())
        return float(self.excess(weights, trades) + rounding)

    def support(self, weights: Array, trades: Array) -> Row:
        """The highest row of the family at this point."""
        return self.with_planes(term.plane(weights, trades) for term in self.terms)

    def with_planes(self, planes: Iterable[Plane]) -> Row:
        """The row of the family with these planes, one for each term."""
        parts: dict[str, Any] = {name: getattr(self.row, name) for name in Parts.NAMES}
        upper = self.row.upper
        for slopes, constant in planes:
            for name, slope in slopes.items():
                parts[name] = slope if parts[name] is None else parts[name] + slope
            upper = upper - constant
        return replace(self.row, **parts, upper=upper, limit=self.row.stated)

    @property
    def of_holdings(self) -> bool:
        """Whether it is a rule on what is held alone, not on the trades."""
        return self.row.buy is None and self.row.sell is None and all(term.of_holdings for term in self.terms)

    @property
    def steepness(self) -> Any:
        own = [np.linalg.norm(c, axis=-1) for name in Parts.NAMES if (c := getattr(self.row, name)) is not None]
        return sum(own, 0.0) + sum(term.steepness for term in self.terms)
