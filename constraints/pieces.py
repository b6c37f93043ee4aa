"""What a rule is: data over a portfolio.

A convex rule about a portfolio is one or more of these pieces, all in fractions of the pre-trade NAV:

    Row      weight·w + long·w⁺ + short·w⁻ + buy·z⁺ + sell·z⁻ ≤ upper
    Bound    lower ≤ w ≤ upper
    Cone     ‖(M (w − c), δ∘(w − c))‖₂ ≤ upper
    Step     a traded quantity is a whole number of lots, and zero or at least a minimum
    Semicontinuous    a position is zero or at least a minimum
    Count    at most so many orders, or names
    Envelope the worst of more rows than one can list (tiered margin, CVaR, k sigmas: see `terms`)

with w the weights after trading, w⁺ and w⁻ their long and short parts, z = w − w₀ the trades, z⁺ buys
and z⁻ sells. Whatever a rule's pieces say is derived from these numbers for every rule at once: the
cvxpy constraint, the closed forms, the exact check, the shadow price and the report.

At the settlement cash a rule must hold for what is left after trades *and* trading costs, and for what there is
before the costs; rules need not know that.
The arrays have one entry an asset, along the last axis. An account is one portfolio, with arrays (n,), or a
stack of B portfolios, with arrays (B, n); a rule that is written for the last axis serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import EllipsisType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.errors import InputError

Array: TypeAlias = NDArray[np.float64]
#: A float of one portfolio, an array (B,) of a stack, or a Fraction: no type follows all three through one formula.
Figure: TypeAlias = Any
#: Arguments of a dataclass by name: no type says which names have which type.
Fields: TypeAlias = dict[str, Any]
#: The entry of a cash: a position, or of a stack an index (B,), (B,).
Place: TypeAlias = int | tuple[NDArray[np.intp], NDArray[np.intp]]
#: Some of the portfolios, assets or rows along an axis.
Index: TypeAlias = slice | EllipsisType | NDArray[np.bool_] | NDArray[np.intp]


@dataclass(frozen=True, eq=False, kw_only=True)
class Parts:
    """weight·w + long·w⁺ + short·w⁻ + buy·z⁺ + sell·z⁻; an absent coefficient is None."""

    weight: Array | None = None
    long: Array | None = None
    short: Array | None = None
    buy: Array | None = None
    sell: Array | None = None

    NAMES: ClassVar[tuple[str, ...]] = ("weight", "long", "short", "buy", "sell")

    def take(self, i: int) -> Any:
        """Those of portfolio i of a stack."""
        fixed = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in fixed.items():
            if name in self.NAMES:
                fixed[name] = value[i] if np.ndim(value) > 1 else value
            elif isinstance(value, Parts):
                fixed[name] = value.take(i)
            elif isinstance(value, np.ndarray):
                fixed[name] = float(value[i])
        return type(self)(**fixed)

    def of(self, weights: Array, trades: Array) -> Any:
        """The value at these weights and trades: a float, or (B,) for those of a stack."""
        given = [(c, name) for name in self.NAMES if (c := getattr(self, name)) is not None]
        return sum((dot(c, part(name, weights, trades)) for c, name in given), 0.0)


def dot(one: Array, other: Array) -> Any:
    """Σ one·other over the assets: a float for one portfolio, (B,) for a stack, with the same bits.

    A product of matrices would not do: what it gives for one row depends on how many rows there are.
    """
    summed = np.sum(one * other, axis=-1)
    return summed if summed.ndim else float(summed)


def part(name: str, weights: Any, trades: Any) -> Any:
    """w, w⁺, w⁻, z⁺ or z⁻ by its name in `Parts`; for arrays of any shape, or single Fractions."""
    of_weights = name in ("weight", "long", "short")
    value = weights if of_weights else trades
    if name == "weight":
        return value
    signed = value if name in ("long", "buy") else -value
    return np.maximum(signed, 0.0) if isinstance(signed, np.ndarray) else max(signed, 0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Row(Parts):
    """weight·w + long·w⁺ + short·w⁻ + buy·z⁺ + sell·z⁻ ≤ upper.

    Convex exactly when long + short ≥ 0 and buy + sell ≥ 0 for every asset, which is checked here.

    A report shows the row in the user's words: `limit` (± `upper` unless given), the sense in which it was
    stated (`at_least` for a floor), and, for ratios such as a health factor, `per`: the row's excess over
    its upper is divided by the value of `per` before it is added to the limit. `liquidation`: the value at
    which the venue liquidates (None: it is not known).

    For a stack, a coefficient is (n,) or (B, n), and `upper` and `limit` are floats or (B,).
    """

    label: str
    upper: Any
    at_least: bool = False
    limit: Any = None
    per: Parts | None = None
    #: By how much `upper` is above what the rule asks for, because what is held breaks it already: plans say so.
    relaxed: Any = 0.0
    liquidation: float | None = None

    @property
    def stated(self) -> Any:
        """The limit as the user stated it."""
        if self.limit is not None:
            return self.limit
        return 0.0 - self.upper if self.at_least else self.upper  # never −0

    def shown(self, excess: Any, per: Any = 1.0) -> Any:
        """The rule's value in the user's words, from the row's excess over `upper` and the value of `per`.

        Both floats, both Fractions, or arrays (B,). Over nothing (a health factor without debt) it is infinite.
        """
        sign = -1.0 if self.at_least else 1.0
        if isinstance(excess, np.ndarray):
            with np.errstate(divide="ignore", invalid="ignore"):
                value = self.stated + sign * (excess / per)
            beyond = np.copysign(np.inf, np.where(excess == 0, -sign, sign * excess))
            return np.where(np.asarray(per) == 0, beyond, value)
        if per == 0:
            return float(np.copysign(np.inf, sign * float(excess) or -sign))
        return self.stated + sign * float(excess / per)

    def __post_init__(self) -> None:
        for one, other in (("long", "short"), ("buy", "sell")):
            pair = [c for c in (getattr(self, one), getattr(self, other)) if c is not None]
            if pair and np.any(sum(pair) < 0):
                raise InputError(
                    f"{self.label}: the coefficients of {one} and {other} add up to less than zero for some "
                    "asset, which is not a convex rule; check the sign of the numbers given"
                )


@dataclass(frozen=True, eq=False, kw_only=True)
class Bound:
    """lower ≤ w ≤ upper, one number an asset, (n,) or (B, n); ±inf where there is none."""

    label: str
    lower: Array
    upper: Array
    #: Whether it limits the trade, and not what is held at the end: with transfers between accounts they differ.
    of_trade: bool = False
    #: By how much `lower` is below what the rule asks for, as in `Row`.
    relaxed: Array | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Cone:
    """‖(M (w − c), δ∘(w − c))‖₂ ≤ upper: M (k × n) and δ (n) around the centre c (n).

    For a stack, M is (k, n) or (B, k, n), and δ and c are (n,) or (B, n).
    """

    label: str
    upper: float
    matrix: Array
    diagonal: Array
    centre: Array

    def of(self, weights: Array) -> Any:
        """The left side: a float, or (B,) for the weights of a stack."""
        away = weights - self.centre
        exposure = np.matmul(self.matrix, away[..., None])[..., 0]
        length = np.hypot(np.linalg.norm(exposure, axis=-1), np.linalg.norm(self.diagonal * away, axis=-1))
        return length if length.ndim else float(length)

    def over(self, weights: Array, trades: Array) -> float:
        """By how much one portfolio breaks it, raised by more than the rounding error."""
        return float(self.of(weights) * (1.0 + 1e-13) - self.upper)


@dataclass(frozen=True, eq=False, kw_only=True)
class Step:
    """Traded quantities are whole multiples of `lot` (0: any quantity), and zero or at least the larger
    of `min_quantity` (units) and `min_notional` (cash); closing a position is exempt. They are at most
    `max_quantity` and `max_notional` (None: no limit). Units, not weights; arrays (n,) or (B, n)."""

    label: str
    lot: Array
    min_quantity: Array
    min_notional: Array
    max_quantity: Array | None = None
    max_notional: Array | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Semicontinuous:
    """A position, long or short, is zero or at least the larger of `weight` (of NAV) and `notional` (cash) in size;
    arrays (n,), 0 where nothing is asked."""

    label: str
    weight: Array
    notional: Array


@dataclass(frozen=True, eq=False, kw_only=True)
class Count:
    """At most `limit` of the assets in the mask `counted` (n,) have an order, or a position after trading."""

    label: str
    of: Literal["orders", "names"]
    counted: NDArray[np.bool_]
    limit: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Opaque:
    """A convex rule that is no data: `build(weights, trades)` returns cvxpy constraints on two cvxpy
    expressions, `violation` measures them at numbers. Only the cvxpy program can solve it."""

    label: str
    build: Callable[[Any, Any], Sequence[Any]]
    violation: Callable[[Array, Array], float]


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
    """A convex rule that is the worst of more rows than one can list; the worst at a point is easily found.

        row(w, z) + Σ terms(w, z) ≤ row.upper,      each term convex, the highest of a family of planes (see `terms`)

    `support` is the highest row of the family at a point: nowhere above the rule, and equal to it there. Newton's
    method needs only the few of them that it meets (Kelley 1960); the cvxpy program has the exact form (`modelled`),
    whose prices choose one row that proves as much as all. So these rules are solved, certified and explained as rows.
    Label, limit and ratio are the row's.
    """

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


Piece: TypeAlias = Row | Bound | Cone | Step | Semicontinuous | Count | Opaque | Envelope
