"""One portfolio and a policy, as the convex program that all solvers share.

    minimise    (aversion/2)·(w − b)ᵀΣ(w − b) + φ(z)/horizon + carry(w)     a fraction of NAV per year
    subject to  Σ w = 1,   lower ≤ w ≤ upper,   rows,   cones

w are the weights after trading in fractions of the pre-trade NAV, z = w − w₀. The entry of the settlement
cash in w is the cash before trading costs; what is left after them is w_c − φ(z). A rule must hold for both: a
floor counts after the costs, a cap before them. For a row f of the cash, that is the convex row

    f(w_c) + max(0, −f')·φ ≤ upper        f' = weight_c + long_c where the cash is positive,
                                               weight_c − short_c where it is negative

exact where f has one slope. Where the cash may be negative and the slopes differ (a health factor), the steeper
one is used, which is safe; `cash_side` = "long" takes the other, which is a relaxation and serves for bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from equipoise.constraints.base import (
    Array,
    Bound,
    Cone,
    Opaque,
    Parts,
    Piece,
    Row,
    Rule,
    Step,
    check_number,
    part,
)
from equipoise.constraints.cash import CashBand, CashFloor
from equipoise.constraints.errors import InputError
from equipoise.optimizer.costs import Cost, CostTerms, total
from equipoise.optimizer.portfolio import Portfolio
from equipoise.optimizer.risk import FactoredRisk, Risk, SquaredDistance
from equipoise.optimizer.separable import Separable

#: No weight leaves ±this many times the NAV (or twice the largest weight that is held or wanted), whatever the
#: rules allow, so that no program is unbounded.
OUTER_BOUND = 100.0


@dataclass(frozen=True)
class Policy:
    """What stays the same from portfolio to portfolio; see `Rebalancer` for the meaning and the units."""

    risk: Risk | None = None
    costs: tuple[Cost, ...] = ()
    constraints: tuple[Rule, ...] = ()
    aversion: float = 10.0
    horizon: float = 1.0

    def __post_init__(self) -> None:
        for number, argument in ((self.aversion, "aversion"), (self.horizon, "horizon")):
            check_number(number, argument, above=0.0)
            if not 1e-50 <= number <= 1e50:
                raise InputError("must lie between 1e-50 and 1e50", column=argument, value=number)
        for given, kind, argument in ((self.costs, Cost, "costs"), (self.constraints, Rule, "constraints")):
            for one in given:
                if not isinstance(one, kind):
                    raise InputError(f"takes a list of {kind.__name__} objects", column=argument, value=one)

    def problem(self, portfolio: Portfolio) -> Problem:
        """The program of this portfolio. Raises InputError where a rule or the risk does not fit its table."""
        try:
            return self._problem(portfolio)
        except InputError as error:
            raise error.within(portfolio.name) if portfolio.name is not None else error from None

    def _problem(self, portfolio: Portfolio) -> Problem:
        cash = portfolio.assets[portfolio.cash]
        risk = (self.risk or SquaredDistance()).aligned(portfolio.assets, cash)
        portfolio = replace(portfolio, risk=risk if self.risk is not None else None)
        rules = self.constraints
        if not any(isinstance(rule, CashFloor | CashBand) for rule in rules):
            rules = (*rules, CashFloor())
        pieces = tuple((rule.title, piece) for rule in rules for piece in rule.pieces(portfolio))
        if sum(isinstance(piece, Step) for _, piece in pieces) > 1:
            raise InputError("two rules give lot sizes; give one LotSize", column="LotSize")
        return Problem(portfolio, risk, total(self.costs, portfolio), self.aversion, self.horizon, pieces, rules)


@dataclass(frozen=True, eq=False)
class Rows:
    """All rows of a problem, stacked: coefficients (m, n), `upper` and `cost` (m,)."""

    titles: tuple[str, ...]
    rows: tuple[Row, ...]
    weight: Array
    long: Array
    short: Array
    buy: Array
    sell: Array
    cost: Array
    upper: Array

    def of(self, weights: Array, trades: Array, cost: float) -> Array:
        """The left sides, costs counted against the cash."""
        sides = sum(getattr(self, name) @ part(name, weights, trades) for name in Parts.NAMES)
        return np.asarray(sides + self.cost * cost)


@dataclass(frozen=True, eq=False)
class Problem:
    """The convex program of one portfolio, as arrays; every solver takes it, every check is made on it."""

    portfolio: Portfolio
    risk: FactoredRisk
    cost: CostTerms
    aversion: float
    horizon: float
    pieces: tuple[tuple[str, Piece], ...]
    #: The rules that the pieces were made of (a trigger asks a DriftBand for its full width).
    rules: tuple[Rule, ...] = ()
    #: Which slope rows have at the cash where it may be negative: see above.
    cash_side: Literal["short", "long"] = "short"

    @property
    def assets(self) -> tuple[str, ...]:
        return self.portfolio.assets

    @property
    def cash(self) -> int:
        return self.portfolio.cash

    @property
    def before(self) -> Array:
        return self.portfolio.before

    @property
    def target(self) -> Array:
        return self.portfolio.target

    @cached_property
    def bounds(self) -> tuple[tuple[str, Bound], ...]:
        return tuple((title, piece) for title, piece in self.pieces if isinstance(piece, Bound))

    @cached_property
    def outer(self) -> float:
        """The bound of assets that no rule bounds."""
        return max(OUTER_BOUND, 2.0 * float(np.max(np.abs([self.before, self.target]))))

    @cached_property
    def lower(self) -> Array:
        return np.asarray(np.max([np.full(len(self.assets), -self.outer), *(b.lower for _, b in self.bounds)], axis=0))

    @cached_property
    def upper(self) -> Array:
        return np.asarray(np.min([np.full(len(self.assets), self.outer), *(b.upper for _, b in self.bounds)], axis=0))

    @cached_property
    def rows(self) -> Rows:
        named = [(title, piece) for title, piece in self.pieces if isinstance(piece, Row)]
        # A floor under the cash is a row: it holds after costs.
        floors = [(title, b.label, b.lower[self.cash]) for title, b in self.bounds if np.isfinite(b.lower[self.cash])]
        if floors:
            title, label, floor = max(floors, key=lambda found: float(found[2]))
            of_cash = np.zeros(len(self.assets))
            of_cash[self.cash] = -1.0
            named.append((title, Row(label=label, weight=of_cash, upper=-float(floor), at_least=True)))
        rows = [row for _, row in named]
        shape = (len(rows), len(self.assets))
        stacked = {
            name: np.array([np.zeros(shape[1]) if (c := getattr(r, name)) is None else c for r in rows]).reshape(shape)
            for name in Parts.NAMES
        }
        # By what a unit less of cash can raise a row: its slope where the cash may be.
        only_long = self.lower[self.cash] >= 0 or self.cash_side == "long"
        kind, sign = ("long", -1.0) if only_long else ("short", 1.0)
        cost = np.maximum(0.0, sign * stacked[kind][:, self.cash] - stacked["weight"][:, self.cash])
        upper = np.array([row.upper for row in rows], dtype=float)
        return Rows(tuple(title for title, _ in named), tuple(rows), cost=cost, upper=upper, **stacked)

    @property
    def kinked(self) -> bool:
        """Whether a row's slope at the cash depends on the cash's sign, and the cash may have both."""
        terms = self.cost
        costs = any(np.any(rate) for rate in (terms.buy, terms.sell, terms.quadratic, terms.impact))
        if self.lower[self.cash] >= 0 or self.cash_side == "long" or not costs:
            return False
        relaxed = replace(self, cash_side="long").rows.cost
        return bool(np.any(relaxed < self.rows.cost))

    @cached_property
    def cones(self) -> tuple[tuple[str, Cone], ...]:
        return tuple((title, piece) for title, piece in self.pieces if isinstance(piece, Cone))

    @cached_property
    def opaque(self) -> tuple[tuple[str, Opaque], ...]:
        return tuple((title, piece) for title, piece in self.pieces if isinstance(piece, Opaque))

    @cached_property
    def step(self) -> Step | None:
        return next((piece for _, piece in self.pieces if isinstance(piece, Step)), None)

    def trading_cost(self, weights: Array) -> float:
        """φ(w − w₀), one-off, in fractions of NAV."""
        return float(np.sum(self.cost.each(weights - self.before)))

    def objective(self, weights: Array) -> float:
        """(aversion/2)·(w − b)ᵀΣ(w − b) + φ(z)/horizon + carry(w), in fractions of NAV per year."""
        variance = float(self.risk.variance(weights - self.target))
        carry = float(np.sum(self.cost.carry(weights)))
        return 0.5 * self.aversion * variance + self.trading_cost(weights) / self.horizon + carry

    def tracking_error(self, weights: Array) -> float:
        """√((w − b)ᵀΣ(w − b)), annual; without a risk model the distance of the weights."""
        return float(np.sqrt(self.risk.variance(weights - self.target)))

    def settled(self, weights: Array) -> Array:
        """The weights with the cash at the exact residual 1 − Σ of the others (before costs)."""
        result = np.array(weights, dtype=float)
        result[self.cash] = 0.0
        result[self.cash] = 1.0 - np.sum(result)
        return result

    def after_costs(self, weights: Array) -> Array:
        """The weights with the trading costs taken out of the cash."""
        result = np.array(weights, dtype=float)
        result[self.cash] -= self.trading_cost(weights)
        return result

    def violation(self, weights: Array) -> float:
        """By how much the worst of all convex rules is broken, in fractions of NAV (0: none, inf: no number)."""
        outside = np.maximum(self.lower - weights, weights - self.upper)
        excess = self.rows.of(weights, weights - self.before, self.trading_cost(weights)) - self.rows.upper
        cones = [cone.of(weights) - cone.upper for _, cone in self.cones]
        opaque = [piece.violation(weights, weights - self.before) for _, piece in self.opaque]
        budget = abs(float(np.sum(weights)) - 1.0)
        worst = float(np.max(np.concatenate([outside, excess, cones, opaque, [budget, 0.0]])))
        return np.inf if np.isnan(worst) else worst

    def separable(self, slope: Array, prices: Array, *, objective: float = 1.0) -> Separable:
        """Each asset's part of the Lagrangian: rows at these prices, factors and cones within `slope`.

        `objective` = 0 leaves the objective out (for proofs of infeasibility).
        """
        rows = self.rows
        per_cost = objective / self.horizon + float(prices @ rows.cost)
        return Separable(
            curvature=objective * self.aversion * self.risk.specific,
            centre=self.target,
            slope=slope + prices @ rows.weight,
            long=objective * self.cost.long + prices @ rows.long,
            short=objective * self.cost.short + prices @ rows.short,
            buy=per_cost * self.cost.buy + prices @ rows.buy,
            sell=per_cost * self.cost.sell + prices @ rows.sell,
            quadratic=per_cost * self.cost.quadratic,
            impact=per_cost * self.cost.impact,
            before=self.before,
            lower=self.lower,
            upper=self.upper,
        )
