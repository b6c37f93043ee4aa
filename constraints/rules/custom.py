"""The open door: a rule as a cvxpy expression of the user's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from equipoise.constraints.errors import InputError, NotStackable
from equipoise.constraints.pieces import Array, Opaque, Piece
from equipoise.constraints.rules.rule import Account, Rule

if TYPE_CHECKING:
    import cvxpy as cp


@dataclass(frozen=True, eq=False)
class Trade:
    """What a custom rule is written in: cvxpy expressions, by asset.

    `weights` and `trades` are vectors in the order of `assets`; `weight("BTC")` and `trade("BTC")` are their
    entries. `before`, `target` (numbers) and `vector(mapping)` follow the same order. All are fractions of
    the pre-trade NAV; the weight of the settlement cash is before trading costs.
    """

    assets: tuple[str, ...]
    weights: cp.Expression
    trades: cp.Expression
    before: Array
    target: Array
    nav: float

    def weight(self, asset: str) -> cp.Expression:
        return self.weights[self._position(asset)]

    def trade(self, asset: str) -> cp.Expression:
        return self.trades[self._position(asset)]

    def vector(self, numbers: Mapping[str, float]) -> Array:
        """Numbers by asset as a vector in the order of `assets`; zero for those not named."""
        for asset in numbers:
            self._position(asset)
        return np.array([float(numbers.get(asset, 0.0)) for asset in self.assets])

    def _position(self, asset: str) -> int:
        if asset not in self.assets:
            raise InputError("a custom rule names an asset that the portfolio does not have", asset=asset)
        return self.assets.index(asset)


def _check(constraint: object, variables: set[int], title: str) -> None:
    """That this is a cvxpy constraint that a rule can be."""
    import cvxpy as cp

    if not isinstance(constraint, cp.constraints.constraint.Constraint):
        what = type(constraint).__name__
        raise InputError("a custom rule must return cvxpy constraints", column=title, value=what)
    problem = None
    if not isinstance(constraint, cp.constraints.Inequality | cp.constraints.Zero | cp.constraints.Equality):
        problem = "must have the form ≤, ≥ or =="
    elif {v.id for v in constraint.variables()} - variables:
        problem = "may use no variables but the trade's own"
    elif not constraint.is_dcp():
        problem = "must be convex by cvxpy's rules (DCP)"
    if problem:
        raise InputError(f"a custom rule {problem}", column=title, value=str(constraint))


@dataclass(frozen=True)
class Custom(Rule):
    """Any convex rule: `build` takes a `Trade` and returns a cvxpy constraint, or a list of them.

        Custom(lambda t: cp.norm(t.trades, 2) <= 0.1, name="small trades")

    It must be convex by cvxpy's rules (DCP), of the forms ≤, ≥ and ==. It is solved by the cvxpy program
    only, and checked by cvxpy's own `violation()` on the final orders.
    """

    build: Callable[[Trade], object]

    def __post_init__(self) -> None:
        if not callable(self.build):
            raise InputError("must be a function of a Trade", column="build", value=self.build)

    def pieces(self, account: Account) -> Sequence[Piece]:
        if len(account.shape) > 1:
            raise NotStackable

        def build(weights: cp.Expression, trades: cp.Expression) -> Sequence[cp.Constraint]:
            trade = Trade(account.assets, weights, trades, account.before, account.target, account.nav)
            made = self.build(trade)
            constraints = list(made) if isinstance(made, list | tuple) else [made]
            own = {v.id for v in (*weights.variables(), *trades.variables())}
            for constraint in constraints:
                _check(constraint, own, self.title)
            return constraints

        mine = threading.local()  # the expressions on two variables of their own, built when first asked

        def violation(weights: Array, trades: Array) -> float:
            import cvxpy as cp

            if not hasattr(mine, "rules"):
                mine.weights, mine.trades = cp.Variable(len(weights)), cp.Variable(len(trades))
                mine.rules = build(mine.weights, mine.trades)
            mine.weights.value, mine.trades.value = weights, trades
            worst = np.max([0.0, *(np.max(c.violation()) for c in mine.rules)])
            return np.inf if np.isnan(worst) else float(worst)  # the logarithm of a debt, for example

        return (Opaque(label=self.title, build=build, violation=violation),)
