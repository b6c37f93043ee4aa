"""Rules that are the worst of more rows than one can list, and the terms that they are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import NamedTuple, Protocol, Self, TypeAlias

import numpy as np

from equipoise.constraints.pieces.parts import Array, Constraint, Expression, Fields, Figure
from equipoise.constraints.pieces.piece import Piece, Wider, Words
from equipoise.constraints.pieces.row import Row
from equipoise.constraints.pieces.states import Check, Settlement, StackState

#: Slopes by their name in `Parts`, and a constant: a float, or (B,).
Plane: TypeAlias = tuple[dict[str, Array], Figure]


class Modelled(NamedTuple):
    """A term in cvxpy: its value, what must hold for that to be its value, and the plane that the prices choose.

    `plane(price)`, after a solve, with the price of the row that the value stands in: nowhere above the term, and
    equal to it at the answer; at a kink it is the one of all planes there with which the answer is optimal.
    """

    value: Expression
    constraints: Sequence[Constraint]
    plane: Callable[[float], Plane]


class Term(Protocol):
    """A convex function of the weights, or of the trades."""

    @property
    def of_holdings(self) -> bool:
        """Whether it is one of what is held, not of the trades."""
        ...

    def of(self, weights: Array, trades: Array) -> Figure:
        """Its value: a float, (B,), or a Fraction for arrays of Fractions."""
        ...

    def plane(self, weights: Array, trades: Array) -> Plane:
        """A plane that is nowhere above it, and equal to it here."""
        ...

    def modelled(self, parts: Mapping[str, Expression]) -> Modelled:
        """The term in cvxpy, of one portfolio: `parts` are w, w⁺, w⁻, z⁺ and z⁻ by their names in `Parts`."""
        ...

    def shocked(self, low: Array, high: Array) -> Term:
        """At most this after each asset's price has moved to somewhere between low and high times what it was."""
        ...

    @property
    def steepness(self) -> Figure:
        """A number (or (B,)) that the length of no plane's slopes is above."""
        ...


@dataclass(frozen=True, eq=False)
class Envelope(Piece):
    """A convex rule that is the worst of more rows than one can list; the worst at a point is easily found.

        row(w, z) + Σ terms(w, z) ≤ row.upper,      each term convex, the highest of a family of planes (see `terms`)

    `support` is the highest row of the family at a point: nowhere above the rule, and equal to it there. Newton's
    method needs only the few of them that it meets (Kelley 1960); the cvxpy program has the exact form (`modelled`),
    whose prices choose one row that proves as much as all. So these rules are solved, certified and explained as rows.
    Label, limit and ratio are the row's.
    """

    label: str = field(init=False)
    row: Row
    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.row.label)

    @property
    def words(self) -> Words:
        return self.row

    @property
    def of_trades(self) -> bool:
        return self.row.of_trades

    def excess(self, weights: Array, trades: Array) -> Figure:
        return self.row.excess(weights, trades) + sum(term.of(weights, trades) for term in self.terms)

    def over(self, weights: Array, trades: Array) -> float:
        # For the bound on rounding errors see `verification.stacked`.
        rounding = 4.0 * (len(weights) + 16) * 2.0**-53 * (1.0 + self.steepness) * (1.0 + np.abs(weights).sum())
        return float(self.excess(weights, trades) + rounding)

    def support(self, weights: Array, trades: Array) -> Row:
        """The highest row of the family at this point."""
        return self.with_planes(term.plane(weights, trades) for term in self.terms)

    def with_planes(self, planes: Iterable[Plane]) -> Row:
        """The row of the family with these planes, one for each term."""
        parts: Fields = self.row.given
        upper = self.row.upper
        for slopes, constant in planes:
            for name, slope in slopes.items():
                parts[name] = parts[name] + slope if name in parts else slope
            upper = upper - constant
        return replace(self.row, **parts, upper=upper, limit=self.row.stated)

    @property
    def of_holdings(self) -> bool:
        """Whether it is a rule on what is held alone, not on the trades."""
        return not self.of_trades and all(term.of_holdings for term in self.terms)

    @property
    def steepness(self) -> Figure:
        own = [np.linalg.norm(c, axis=-1) for c in self.row.given.values()]
        return sum(own, 0.0) + sum(term.steepness for term in self.terms)

    def checks(self, title: str, settled: Settlement) -> Iterator[Check]:
        yield min(
            (self._check(title, settled, value) for value in (settled.value, settled.earlier)),
            key=lambda check: check.slack,
        )

    def _check(self, title: str, settled: Settlement, value: Sequence[int]) -> Check:
        w, z = (
            np.array([Fraction(x, settled.nav) for x in amounts], dtype=object) for amounts in (value, settled.traded)
        )
        return self.row.check(title, settled, value, sum(term.of(w, z) for term in self.terms) * settled.nav)

    def slack(self, state: StackState) -> tuple[Array, Figure]:
        after, before = (self.excess(w, state.traded) for w in (state.after, state.before_costs))
        return -np.maximum(after, before), self.steepness

    def on_the_way(self, named: bool, cashes: Sequence[int]) -> bool:
        return named or self.of_holdings

    def _with(self, row: Row) -> Self:
        return replace(self, row=row)

    def restated(self, limit: float, at: Sequence[int] = (), side: str = "lower") -> Envelope:
        return self._with(self.row.restated(limit))

    def unlimited(self, none: float) -> Self:
        return self._with(self.row.unlimited(none))

    def joined(self, by: Wider) -> Envelope:
        return Envelope(self.row.joined(by), tuple(by.term(term) for term in self.terms))

    def shocked(self, low: Array, high: Array, when: str) -> Envelope:
        """At most this for any prices between low and high times what they are."""
        return Envelope(self.row.shocked(low, high, when), tuple(term.shocked(low, high) for term in self.terms))
