"""A portfolio, or a stack of them, and a policy, as the convex program that all solvers share.

    minimise    (aversion/2)·(w − b)ᵀΣ(w − b) + φ(z)/horizon + carry(w)     a fraction of NAV per year
    subject to  Σ w = 1,   lower ≤ w ≤ upper,   rows,   cones

w are the weights after trading in fractions of the pre-trade NAV, z = w − w₀. The entry of the settlement
cash in w is the cash before trading costs; what is left after them is w_c − φ(z). A rule must hold for both: a
floor counts after the costs, a cap before them. For a row f of the cash, that is the convex row

    f(w_c) + max(0, −f')·φ ≤ upper        f' = weight_c + long_c where the cash is positive,
                                               weight_c − short_c where it is negative

exact where f has one slope. Where the cash may be negative and the slopes differ (a health factor), the steeper
one is used, which is safe; `cash_side` = "long" takes the other, which is a relaxation and serves for bounds.

Everything is written for the last axis, the assets: of a `Stack` of B portfolios weights are (B, n), figures (B,).

Where a portfolio lies in several accounts (`accounts`), each has its own cash and its own budget in place of Σ w = 1,
and what is said of the cash and its costs holds for each cash and the costs that it pays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, reduce
from typing import Any, Literal

import numpy as np

from equipoise.constraints.pieces import (
    Array,
    Bound,
    Cone,
    Envelope,
    Figure,
    Indices,
    Kind,
    Parts,
    Piece,
    Place,
    Row,
    Shape,
    Step,
    dot,
    of_kind,
)
from equipoise.constraints.rules.rule import Labels, Rule
from equipoise.optimizer.problem.accounts import Accounts, Budgets
from equipoise.optimizer.problem.costs import CostTerms, Fees
from equipoise.optimizer.problem.row_matrices import Rows
from equipoise.optimizer.problem.threshold import Separable
from equipoise.optimizer.risk.models import FactoredRisk

#: No weight leaves ±this many times the NAV (or twice the largest weight that is held or wanted), whatever the
#: rules allow, so that no program is unbounded.
OUTER_BOUND = 100.0


def _figure(value: Figure) -> Figure:
    return value if np.ndim(value) else float(value)


@dataclass(frozen=True, eq=False)
class _Alone:
    """What a problem asks of its portfolio once its pieces are made."""

    before: Array
    target: Array
    cash: tuple[Indices, Indices]


@dataclass(frozen=True, eq=False)
class Problem:
    """The program of one portfolio, as arrays; every solver takes it, every check is made on it.

    What is not convex in it is marked as such: steps, counts and least positions among the pieces, which convex solvers
    do not look at, and `fees`, which they must not see: they take the `relaxation`.
    """

    portfolio: Any  # a Portfolio, or a Stack
    risk: FactoredRisk
    cost: CostTerms
    aversion: float
    horizon: float
    pieces: tuple[tuple[str, Piece], ...]
    #: The rules that the pieces were made of (a trigger asks a DriftBand for its full width).
    rules: tuple[Rule, ...] = ()
    #: Which slope rows have at the cash where it may be negative: see above.
    cash_side: Literal["short", "long"] = "short"
    #: Whether Newton's iteration runs as machine code (numba).
    compiled: bool = False
    #: What orders cost for being orders; None if nothing.
    fees: Fees | None = None
    #: Supporting rows of envelopes that were met so far: what they ask for, in rows; see `supported`.
    found: tuple[tuple[str, Row], ...] = ()
    #: The budgets of the accounts, if there are several, and what was asked before they were joined.
    accounts: Accounts | None = None
    unjoined: Problem | None = None

    @property
    def asked(self) -> Problem:
        """What was asked of the table's own rows: with several accounts, the problem before they were joined."""
        return self if self.unjoined is None else self.unjoined

    @cached_property
    def relaxation(self) -> Problem:
        """The convex program: without fees. Its objective is nowhere above this one's."""
        return self if self.fees is None else replace(self, fees=None)

    @cached_property
    def discrete(self) -> bool:
        """Whether orders are searched one by one: for lots, fees, counts or least positions."""
        return self.fees is not None or any(piece.discrete for _, piece in self.pieces)

    def of_kind(self, kind: type[Kind]) -> tuple[tuple[str, Kind], ...]:
        """The pieces of this kind, with their rules' titles."""
        return of_kind(self.pieces, kind)

    def as_stack(self) -> Problem:
        """This one problem as a stack of one."""
        alone = _Alone(self.before[None], self.target[None], (np.zeros(1, dtype=np.intp), np.array([self.cash])))
        cost = CostTerms(*(getattr(self.cost, f.name)[None] for f in fields(CostTerms)))
        stack = replace(self, portfolio=alone, cost=cost)
        vars(stack)["rows"] = self.rows.as_stack()  # the same, and not small
        return stack

    @property
    def shape(self) -> tuple[int, ...]:
        """(n,) for one portfolio, (B, n) for a stack."""
        shape: tuple[int, ...] = self.before.shape
        return shape

    @property
    def assets(self) -> Labels:
        """The labels: a tuple, or for a stack an array (B, n)."""
        return self.portfolio.assets

    @property
    def cash(self) -> Any:
        """The index of the settlement cash: a position, or for a stack a pair of arrays."""
        return self.portfolio.cash

    @property
    def cashes(self) -> tuple[Any, ...]:
        """The indices of all cash entries: one, or with several accounts one for each, the settlement cash first."""
        if self.accounts is None:
            return (self.cash,)
        alone = isinstance(self.cash, int)
        return tuple(at if alone else (np.zeros(1, dtype=np.intp), np.array([at])) for at in self.accounts.cashes)

    @cached_property
    def budgets(self) -> Budgets:
        """Σ w = 1, or with several accounts what each has to spend."""
        return Budgets.of_one(self.shape[-1]) if self.accounts is None else self.accounts.budgets

    @property
    def before(self) -> Array:
        return np.asarray(self.portfolio.before)

    @property
    def target(self) -> Array:
        return np.asarray(self.portfolio.target)

    @cached_property
    def bounds(self) -> tuple[tuple[str, Bound], ...]:
        return self.of_kind(Bound)

    @cached_property
    def outer(self) -> Figure:
        """The bound of assets that no rule bounds."""
        largest = np.maximum(np.abs(self.before).max(axis=-1), np.abs(self.target).max(axis=-1))
        return _figure(np.maximum(OUTER_BOUND, 2.0 * largest))

    @cached_property
    def lower(self) -> Array:
        outer = np.broadcast_to(np.asarray(-self.outer)[..., None], self.shape)
        return np.array(reduce(np.maximum, (b.lower for _, b in self.bounds), outer))

    @cached_property
    def upper(self) -> Array:
        outer = np.broadcast_to(np.asarray(self.outer)[..., None], self.shape)
        return np.array(reduce(np.minimum, (b.upper for _, b in self.bounds), outer))

    @property
    def found_rows(self) -> slice:
        """Where those that were found stand among all rows: after the pieces' own, before the floors of the cashes."""
        own = len(self.of_kind(Row))
        return slice(own, own + len(self.found))

    @cached_property
    def rows(self) -> Rows:
        named = [*self.of_kind(Row), *self.found, *self._floors()]
        rows = [row for _, row in named]
        stacked = {name: self._stacked([getattr(row, name) for row in rows]) for name in Parts.NAMES}
        figures = self.shape[:-1]
        upper = np.array([np.broadcast_to(row.upper, figures) for row in rows], dtype=float).reshape(-1, *figures)
        return Rows(
            tuple(title for title, _ in named),
            tuple(rows),
            upper=upper.T.copy(),
            by_cash=self._raised(stacked),
            **stacked,
        )

    def _floors(self) -> Iterator[tuple[str, Row]]:
        """The floor under each cash as a row: it holds after costs."""
        for cash in self.cashes:
            levels = ((title, b.label, np.broadcast_to(b.lower, self.shape)[cash]) for title, b in self.bounds)
            floors = [found for found in levels if np.any(np.isfinite(found[2]))]
            if floors:
                # The highest one; in a stack it may be another rule's from portfolio to portfolio.
                title, label, _ = max(floors, key=lambda found: float(np.min(found[2])))
                floor = reduce(np.maximum, (found[2] for found in floors))
                yield title, Row(label=label, weight=self._floor(cash), upper=-floor, at_least=True)

    def _stacked(self, given: Sequence[Array | None]) -> Array:
        """Coefficients of rows as one matrix: (m, n), or (B, m, n) where those of a stack differ; None is 0."""
        shape = self.shape if any(c is not None and c.ndim > 1 for c in given) else self.shape[-1:]
        if all(c is None for c in given):
            return np.broadcast_to(0.0, (len(given), *shape))  # takes no memory, and no time to read it
        matrix = np.zeros((*shape[:-1], len(given), shape[-1]))
        for place, c in enumerate(given):
            if c is not None:
                matrix[..., place, :] = c
        return matrix

    def _floor(self, cash: Place) -> Array:
        """−w_c as coefficients: (n,), or (B, n) where portfolios of a stack have the cash in different places."""
        places = np.atleast_1d(cash if isinstance(cash, int) else cash[1])
        shared = bool(np.all(places == places[:1]))
        row = np.zeros(self.shape[-1:] if shared else self.shape)
        row[places[0] if shared else cash] = -1.0
        return row

    def _raised(self, coefficients: Mapping[str, Array]) -> Array:
        """By what a unit less of each cash can raise each row: (…, m, accounts)."""
        return np.stack([self._raised_by(coefficients, cash) for cash in self.cashes], axis=-1)

    def _raised_by(self, coefficients: Mapping[str, Array], cash: Place) -> Array:
        """By its slope where the cash may be."""
        only_long = (self.lower[cash] >= 0) | (self.cash_side == "long")
        long, short, weight = (self.at_cash(coefficients[name], cash) for name in ("long", "short", "weight"))
        return np.maximum(0.0, np.where(np.asarray(only_long)[..., None], -long, short) - weight)

    def at_cash(self, coefficients: Array, cash: Place | None = None) -> Array:
        """The cash's column of coefficients (…, m, n)."""
        cash = self.cash if cash is None else cash
        if isinstance(cash, int):
            return np.asarray(coefficients[..., cash])
        each = np.broadcast_to(coefficients, (self.shape[0], *coefficients.shape[-2:]))
        return np.asarray(each[cash[0], :, cash[1]])

    @property
    def kinked(self) -> Figure:
        """Whether a row's slope at the cash depends on the cash's sign, and the cash may have both."""
        terms = self.cost
        costs = sum(np.any(rate, axis=-1) for rate in (terms.buy, terms.sell, terms.quadratic, terms.impact))
        costs = costs + (self.fees is not None)
        relaxed = replace(self, cash_side="long")._raised(vars(self.rows))
        steeper = np.any(relaxed < self.rows.by_cash, axis=(-2, -1))
        steeper = steeper | bool(self.envelopes)  # of whose rows that is not known yet
        negative = reduce(np.logical_or, (self.lower[cash] < 0 for cash in self.cashes))
        bends = steeper & negative & (self.cash_side != "long") & (costs > 0)
        return bends if np.ndim(bends) else bool(bends)

    @cached_property
    def cones(self) -> tuple[tuple[str, Cone], ...]:
        return self.of_kind(Cone)

    @cached_property
    def opaque(self) -> tuple[tuple[str, Shape], ...]:
        """What only the cvxpy program knows."""
        return self.of_kind(Shape)  # type: ignore[type-abstract]

    @cached_property
    def envelopes(self) -> tuple[tuple[str, Envelope], ...]:
        return self.of_kind(Envelope)

    def beyond(self, weights: Array) -> Figure:
        """By how much the worst envelope is broken, with the cash before costs or after them; −inf without one."""
        worst = np.full(self.shape[:-1], -np.inf)
        if self.envelopes:
            trades = weights - self.before
            for state in (weights, self._after(weights)):
                worst = reduce(np.maximum, (piece.excess(state, trades) for _, piece in self.envelopes), worst)
        return _figure(np.where(np.isnan(worst), np.inf, worst))

    def supported(self, weights: Array) -> Problem:
        """The same problem with the highest row of each envelope at these weights among its rows.

        A solver that sees only the rows solves a relaxation, whose bound holds; where its answer keeps the envelopes,
        it is the answer (Kelley 1960).
        """
        trades, after = weights - self.before, self._after(weights)
        met = []
        for title, piece in self.envelopes:
            worse = np.asarray(piece.excess(after, trades) > piece.excess(weights, trades))[..., None]
            met.append((title, piece.support(np.where(worse, after, weights), trades)))
        return replace(self, found=(*self.found, *met))

    def _after(self, weights: Array) -> Array:
        """The weights after costs; in the relaxed form, without them where they would make the cash negative."""
        after = self.after_costs(weights)
        relaxed = np.asarray((self.cash_side == "long") & (after[self.cash] < 0))
        return np.where(relaxed[..., None], weights, after)

    @cached_property
    def step(self) -> Step | None:
        return next((piece for _, piece in self.of_kind(Step)), None)

    def paid(self, trades: Array) -> Array:
        """What each asset's trade costs, fees included: one-off, in fractions of NAV."""
        each = self.cost.each(trades)
        return each if self.fees is None else each + self.fees.each(trades)

    def trading_cost(self, weights: Array) -> Figure:
        """φ(w − w₀), one-off, in fractions of NAV."""
        return _figure(self.paid(weights - self.before).sum(axis=-1))

    def objective(self, weights: Array) -> Figure:
        """(aversion/2)·(w − b)ᵀΣ(w − b) + φ(z)/horizon + carry(w), in fractions of NAV per year."""
        variance = self.risk.variance(weights - self.target)
        carry = self.cost.carry(weights).sum(axis=-1)
        return _figure(0.5 * self.aversion * variance + self.trading_cost(weights) / self.horizon + carry)

    def tracking_error(self, weights: Array) -> Figure:
        """√((w − b)ᵀΣ(w − b)), annual; without a risk model the distance of the weights."""
        return _figure(np.sqrt(self.risk.variance(weights - self.target)))

    def settled(self, weights: Array) -> Array:
        """The weights with the cash at the exact residual 1 − Σ of the others (before costs)."""
        result = np.array(weights, dtype=float)
        for cash, spends, has in zip(self.cashes, self.budgets.spends, self.budgets.has, strict=True):
            result[cash] = 0.0
            result[cash] = has - dot(result, spends)
        return result

    def charged(self, weights: Array) -> Array:
        """The trading costs that each cash pays: (accounts,), or (B, accounts)."""
        return np.asarray(dot(self.budgets.pays, self.paid(weights - self.before)[..., None, :]))

    def after_costs(self, weights: Array) -> Array:
        """The weights with the trading costs taken out of the cash."""
        result = np.array(weights, dtype=float)
        costs = self.charged(weights)
        for k, cash in enumerate(self.cashes):
            result[cash] -= costs[..., k]
        return result

    def violation(self, weights: Array, *, envelopes: bool = True) -> Figure:
        """By how much the worst of all convex rules is broken, in fractions of NAV (0: none, inf: no number)."""
        trades = weights - self.before
        outside = np.maximum(self.lower - weights, weights - self.upper)
        excess = self.rows.of(weights, trades, self.charged(weights)) - self.rows.upper
        budget = np.abs(dot(self.budgets.spends, weights[..., None, :]) - self.budgets.has).max(axis=-1)
        worst = np.maximum(outside.max(axis=-1), np.maximum(excess.max(axis=-1, initial=0.0), budget))
        for _, piece in (*self.cones, *self.opaque):
            worst = np.maximum(worst, piece.excess(weights, trades))
        if envelopes:
            worst = np.maximum(worst, self.beyond(weights))
        return _figure(np.where(np.isnan(worst), np.inf, worst))

    def separable(self, slope: Array, prices: Array, *, objective: float = 1.0) -> Separable:
        """Each asset's part of the Lagrangian: rows at these prices, factors and cones within `slope`.

        `objective` = 0 leaves the objective out (for proofs of infeasibility).
        """
        rows = self.rows
        per_cost = objective / self.horizon + (prices @ rows.by_cash) @ self.budgets.pays
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
