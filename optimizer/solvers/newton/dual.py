"""The dual function of a stack of problems: given the prices, every asset is on its own.

With the exposures y = F(w − b) and the rows r(w) ≤ upper priced at λ (k,), μ ≥ 0 (m,) and the budget at ν,

    D(λ, μ, ν) = −|λ|²/(2·aversion) − λᵀFb − μᵀupper − ν + Σᵢ min over [lᵢ, uᵢ] of  fᵢ(wᵢ; λ, μ, ν)

is concave, a lower bound on the objective of every feasible w (see `certificate`), and piecewise smooth. Its
gradient is what the minimisers w leave of each row, F(w − b) − λ/aversion, r(w) − upper, Σw − 1, and its Hessian
−J diag(1/fᵢ″) Jᵀ − diag(1/aversion, 0, 0) with the rows' slopes J at the assets that no kink or bound holds.

The settlement cash costs nothing to trade and has no risk, so it is taken out: w_c = 1 − Σ of the others, and
no budget is left. Where a rule or a rate makes the cash bend at 0 and it may be on both sides, it stays an asset.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.pieces import Array, Fields, Index, part
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.row_matrices import Rows, times
from equipoise.optimizer.problem.threshold import PRICED, Coefficient, Separable, absent

#: The parts of a row that have a kink; their coefficients are added to the asset's own.
KINKS = ("long", "short", "buy", "sell")
_TRADING = ("buy", "sell", "quadratic", "impact")
_SIDES = (("long", "short"), ("buy", "sell"))
ALL = slice(None)
T = TypeVar("T", bound=np.generic)
NOTHING: Fields = dict.fromkeys(("curvature", *PRICED), 0.0)


#: Rows that may be the two sides of a band, r·w ≤ upper and −r·w ≤ upper: some, the others, and in which problems.
Band: TypeAlias = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]


@dataclass(frozen=True, eq=False)
class Point:
    """The dual at some prices: each asset's function, its minimiser, 1/f″ there, and the gradient."""

    prices: Array
    assets: Separable
    weights: Array
    moves: Array
    gradient: Array

    def take(self, at: Index) -> Point:
        return Point(self.prices[at], taken(self.assets, at), self.weights[at], self.moves[at], self.gradient[at])

    def put(self, at: Index, other: Point) -> None:
        """Replace what is at these problems."""
        for name in ("prices", "weights", "moves", "gradient"):
            getattr(self, name)[at] = getattr(other, name)
        for name in PRICED:
            if isinstance(mine := getattr(self.assets, name), np.ndarray):
                mine[at] = getattr(other.assets, name)


@dataclass(frozen=True, eq=False)
class Dual:
    """The dual function of B problems as arrays; prices are (B, K): k factors, m rows, and perhaps the budget."""

    assets: Separable  #: per year, without rows; (B, n), or 0.0 for what no asset has
    linear: Array  #: the linear parts of all K rows: (K, n), or (B, K, n)
    limits: Array  #: (B, K): Fb, upper, 1
    kinks: dict[str, Array]  #: (m, n) or (B, m, n), for those of `KINKS` that any row has
    cost: Array | None  #: by how much one-off costs raise each row, (B, m), or each entry's, (B, m, n); None: none does
    constant: Array  #: (B,): what holding the cash alone would cost a year
    factors: int
    aversion: float
    horizon: float
    budget: int  #: how many of the last prices are those of budgets, equalities: 0 or 1, or one an account

    bands: tuple[Band, ...]
    #: Where the prices that are looked for are changes of these, `base` (B, K), what they make of the assets (with
    #: a proximal term): a small change then counts, however large the prices.
    base: Array | None = None
    start: Separable | None = None
    sides: tuple[Array, Array] | None = None  #: from which the assets are `Separable.seen_from`

    @property
    def size(self) -> int:
        return len(self.limits)

    @property
    def rows(self) -> slice:
        return slice(self.factors, self.factors + self.row_count)

    @property
    def coupling(self) -> int:
        """How many prices Newton's method looks for."""
        return int(self.limits.shape[1])

    @property
    def row_count(self) -> int:
        return int(self.limits.shape[1]) - self.factors - self.budget

    def take(self, at: Index, of: Dual | None = None) -> Dual:
        """Those of the problems; `of`: the same of the dual without a base, if that is at hand."""
        if of is None:
            of = replace(
                self,
                assets=taken(self.assets, at),
                linear=_of_each(self.linear, at),
                limits=self.limits[at],
                kinks={name: _of_each(matrix, at) for name, matrix in self.kinks.items()},
                cost=None if self.cost is None else self.cost[at],
                constant=self.constant[at],
                bands=tuple((one, other, _of_each(mask, at, 2)) for one, other, mask in self.bands),
            )
        return replace(
            of,
            base=None if self.base is None else self.base[at],
            start=None if self.start is None else taken(self.start, at),
            sides=None if self.sides is None else (self.sides[0][at], self.sides[1][at]),
        )

    def netted(self, prices: Array) -> Array:
        """The same prices, one side of each band at 0: the dual is no lower there, and no asset notices."""
        for one, other, opposite in self.bands:
            one, other = one + self.factors, other + self.factors
            whole = self.whole(prices)
            both = np.minimum(whole[:, one], whole[:, other])
            both = np.where(opposite & (self.limits[:, one] + self.limits[:, other] >= 0), both, 0.0)
            prices[:, one] -= both
            prices[:, other] -= both
        return prices

    def whole(self, prices: Array) -> Array:
        """The prices themselves, where these are changes of a base."""
        return prices if self.base is None else self.base + prices

    def ray(self, prices: Array) -> Array:
        """The prices with which a proof that nothing is feasible is looked for."""
        return self.whole(prices)

    def priced(self, prices: Array) -> Separable:
        """Each asset's function at these prices."""
        return (self.start or self.assets).plus(self.seen(self.change(prices)))

    def seen(self, change: Separable) -> Separable:
        """The change as it is added to `start`."""
        return change if self.sides is None else change.seen_from(*self.sides)

    def change(self, prices: Array) -> Separable:
        """What prices add to the assets' functions, which are linear in them."""
        rows = prices[:, self.rows]
        terms = {"slope": _sum(prices, self.linear)}
        terms |= {name: _sum(rows, matrix) for name, matrix in self.kinks.items()}
        if self.cost is not None:
            raised = _sum(rows, self.cost) if self.cost.ndim == 3 else np.sum(rows * self.cost, axis=1, keepdims=True)
            for name in _TRADING:
                if not absent(own := getattr(self.assets, name)):
                    terms[name] = terms.get(name, 0.0) + own * (raised * self.horizon)
        return replace(self.assets, **(NOTHING | terms))

    def at(self, prices: Array) -> Point:
        assets, prices, weights, moves = self.settled(self.priced(prices), prices)
        return Point(prices, assets, weights, moves, self.gradient(prices, weights))

    def settled(self, assets: Separable, prices: Array) -> tuple[Separable, Array, Array, Array]:
        """The assets at these prices, and those of groups at their best (`disjoint_rows`): with weights and moves."""
        return assets, prices, *assets.response()

    def sizes(self, prices: Array) -> Array:
        """Σ|price·slope| of each asset (B, n): its slope is rounded by a part of this."""
        return np.asarray(np.matmul(np.abs(prices)[:, None, :], np.abs(self.linear))[:, 0, :])

    def gradient(self, prices: Array, weights: Array) -> Array:
        """What the weights leave of each row: (B, K)."""
        k, rows, trades = self.factors, self.rows, weights - self.assets.before
        gradient = times(self.linear, weights) - self.limits[:, : self.coupling]
        gradient[:, :k] -= self.whole(prices)[:, :k] / self.aversion
        for name, matrix in self.kinks.items():
            gradient[:, rows] += times(matrix, part(name, weights, trades))
        if self.cost is not None:
            cost = self.horizon * self.trading(trades)
            own = self.cost.ndim == 3
            gradient[:, rows] += times(self.cost, cost) if own else self.cost * cost.sum(axis=1, keepdims=True)
        return gradient

    def trading(self, trades: Array) -> Array:
        """What each trade costs, spread over the horizon: φᵢ/horizon."""
        own, size = self.assets, np.abs(trades)
        cost = np.where(trades > 0, own.buy, own.sell) * size
        if not absent(own.quadratic):
            cost = cost + own.quadratic * size**2
        if not absent(own.impact):
            cost = cost + own.impact * size * np.sqrt(size)
        return np.asarray(cost)

    def slopes(self, weights: Array, which: Index = ALL) -> Array:
        """J: the slopes of the rows of these prices (in ascending order) at each asset, (W, n) or (B, W, n)."""
        linear = self.linear[..., which, :]
        if not self.kinks and self.cost is None:
            return linear
        own, trades = self.assets, weights - self.assets.before
        slopes = np.array(np.broadcast_to(linear, (self.size, *linear.shape[-2:])))
        price = np.arange(self.limits.shape[1])[which]
        rows = slice(*np.searchsorted(price, (self.rows.start, self.rows.stop)))
        row = ALL if which is ALL else price[rows] - self.factors
        for name, matrix in self.kinks.items():
            signed = weights if name in ("long", "short") else trades
            on = np.where(signed > 0, 1.0, 0.0) if name in ("long", "buy") else np.where(signed < 0, -1.0, 0.0)
            slopes[:, rows] += matrix[..., row, :] * on[:, None, :]
        if self.cost is not None:
            rate = np.where(trades > 0, own.buy, np.negative(own.sell))
            if not absent(own.quadratic):
                rate = rate + 2.0 * own.quadratic * trades
            if not absent(own.impact):
                rate = rate + 1.5 * own.impact * np.copysign(np.sqrt(np.abs(trades)), trades)
            slopes[:, rows] += self.cost_of_entries[:, row] * (self.horizon * rate)[:, None, :]
        return slopes

    @property
    def cost_of_entries(self) -> Array:
        """By how much each entry's cost raises each row: (B, m, 1) or (B, m, n)."""
        assert self.cost is not None
        return self.cost if self.cost.ndim == 3 else self.cost[:, :, None]

    def curvature(self, point: Point, which: Index = ALL) -> Array:
        """Minus the Hessian in these prices (in ascending order): (B, W, W), positive semidefinite."""
        return self.squared(self.slopes(point.weights, which), point.moves, which)

    def squared(self, slopes: Array, moves: Array, which: Index) -> Array:
        """Σᵢ JᵢJᵢᵀ/fᵢ″ and the factors' own curvature, in these prices."""
        scaled = slopes * np.sqrt(moves)[:, None, :]
        curvature = np.matmul(scaled, scaled.transpose(0, 2, 1))
        factor = np.arange(np.searchsorted(np.arange(self.limits.shape[1])[which], self.factors))
        curvature[:, factor, factor] += 1.0 / self.aversion
        return np.asarray(curvature)

    def bound(self, prices: Array, *, objective: float = 1.0) -> Array:
        """D at these prices (B,): no feasible objective is below it. `objective` = 0: of the zero function."""
        k = self.factors
        assets = self.priced(prices)
        if not objective:
            prices = np.where(np.arange(prices.shape[1]) < k, 0.0, prices)
            assets = self.change(prices)
        best = assets.value(assets.response()[0]).sum(axis=1)
        spread = np.square(prices[:, :k]).sum(axis=1) / (2.0 * self.aversion)
        return np.asarray(objective * (self.constant - spread) - (prices * self.limits).sum(axis=1) + best)


def of(problem: Problem, at: NDArray[np.intp], *, out: bool, capped: bool) -> Dual:
    """The dual of these problems of a stack; `out`: the cash is taken out, `capped`: under an upper bound."""
    given = _given(problem, at)
    factors = _of_stack(problem.risk.factors, at)
    exposure = times(factors, given.assets["centre"])
    if out:
        cash = np.asarray(problem.portfolio.cash[1])[at]
        given = _without_cash(given, cash, capped)
    linear, limits, has = [factors, given.weight], [exposure, given.upper], problem.budgets.has
    if not out:
        linear.append(problem.budgets.spends)
        limits.append(np.broadcast_to(has, (len(at), len(has))))
    shape = np.broadcast_shapes(*(matrix.shape[:-2] for matrix in linear))
    costly = given.cost.any() and any(given.yearly[name].any() for name in _TRADING)
    sided = [*given.kinks.values(), given.cost.reshape(*given.upper.shape, -1)]
    return Dual(
        assets=Separable(**given.assets, **_terms(given.yearly), slope=given.slope),
        linear=np.concatenate([np.broadcast_to(m, (*shape, *m.shape[-2:])) for m in linear], axis=-2),
        limits=np.concatenate(limits, axis=1),
        kinks=given.kinks,
        cost=given.cost if costly else None,
        constant=given.constant,
        factors=exposure.shape[1],
        aversion=problem.aversion,
        horizon=problem.horizon,
        bands=_bands(problem.rows, given.weight, sided),
        budget=0 if out else len(has),
    )


@dataclass
class _Given:
    """What a dual is made of: arrays (B, n) by the names in `Separable`, and rows (m, n), or (B, m, n)."""

    assets: dict[str, Array]
    yearly: dict[str, Array]  # what trading and holding cost a year
    weight: Array
    kinks: dict[str, Array]
    upper: Array  # (B, m)
    cost: Array  # (B, m), or (B, m, n): by what a unit of costs raises a row
    constant: Array  # (B,)
    slope: Coefficient = 0.0


def _given(problem: Problem, at: NDArray[np.intp]) -> _Given:
    def mine(values: Array) -> Array:
        return np.array(np.broadcast_to(values, problem.shape)[at])

    rows, cost, (_, has, pays) = problem.rows, problem.cost, problem.budgets
    kinks = {name: m for name in KINKS if (m := _of_stack(getattr(rows, name), at)).any()}
    for one, other in _SIDES:
        if one in kinks or other in kinks:
            kinks.setdefault(one, np.zeros_like(kinks.get(other)))
            kinks.setdefault(other, np.zeros_like(kinks[one]))
    yearly = {name: mine(getattr(cost, name)) / problem.horizon for name in _TRADING}
    return _Given(
        assets={
            "curvature": mine(problem.aversion * problem.risk.specific),
            "centre": mine(problem.target),
            "before": mine(problem.before),
            "lower": mine(problem.lower),
            "upper": mine(problem.upper),
        },
        yearly=yearly | {name: mine(getattr(cost, name)) for name in ("long", "short")},
        weight=_of_stack(rows.weight, at),
        kinks=kinks,
        upper=rows.upper[at],
        cost=rows.cost[at] if len(has) == 1 else np.matmul(rows.by_cash[at], pays),
        constant=np.zeros(len(at)),
    )


def _without_cash(given: _Given, cash: NDArray[np.intp], capped: bool) -> _Given:
    """With w_c = 1 − Σ of the others, in every row and in what holding costs; `capped`: its upper bound is a row."""
    size, n = given.assets["centre"].shape
    item, weight, kinks, cost = np.arange(size), given.weight, given.kinks, given.cost
    shared = weight.ndim == 2 and all(m.ndim == 2 for m in kinks.values()) and bool(np.all(cash == cash[0]))
    each, place = (item[:1], cash[:1]) if shared else (item, cash)
    others = np.ones((len(each), 1, n))
    others[each, 0, place] = 0.0
    per_cash = _column(weight, each, place) + (_column(kinks["long"], each, place) if "long" in kinks else 0.0)
    weight = weight - per_cash[:, :, None]
    weight[each, :, place] = 0.0
    upper = given.upper - per_cash
    kinks = {name: matrix * others for name, matrix in kinks.items()}
    if capped:
        weight = np.append(weight, -others, axis=1)
        upper = np.append(upper, (given.assets["upper"][item, cash] - 1.0)[:, None], axis=1)
        cost = np.append(cost, np.zeros((size, 1)), axis=1)
        kinks = {name: np.append(matrix, np.zeros_like(others), axis=1) for name, matrix in kinks.items()}
    if shared:
        weight, kinks = weight[0], {name: matrix[0] for name, matrix in kinks.items()}
    constant = given.yearly["long"][item, cash]
    slope: Coefficient = -constant[:, None] * others[:, 0] if np.any(constant) else 0.0
    for values in (*given.assets.values(), *given.yearly.values()):
        values[item, cash] = 0.0
    given.assets["curvature"][item, cash] = 1.0
    return _Given(given.assets, given.yearly, weight, kinks, upper, cost, constant, slope)


def _terms(yearly: dict[str, Array]) -> Fields:
    """What trading and holding cost, for `Separable`: 0 where nothing does, both sides where one does."""
    terms: Fields = {name: values if values.any() else 0.0 for name, values in yearly.items()}
    for one, other in _SIDES:
        if not (absent(terms[one]) and absent(terms[other])):
            terms |= {one: yearly[one], other: yearly[other]}
    return terms


def _of_stack(matrix: Array, at: NDArray[np.intp]) -> Array:
    """The matrices of these problems; what all share stays."""
    return matrix[at] if matrix.ndim == 3 else matrix


def _bands(rows: Rows, weight: Array, others: list[Array]) -> tuple[Band, ...]:
    """Rows of one label, a ceiling and a floor, and in which problems they are opposite, without kinks and costs."""
    labels: dict[str, tuple[list[int], list[int]]] = {}
    for place, row in enumerate(rows.rows):
        labels.setdefault(row.label, ([], []))[row.at_least].append(place)
    pairs: dict[int, list[tuple[int, int]]] = {}
    for ceilings, floors in labels.values():
        for turn in range(len(floors)):  # a rule may be given twice: each with each, but none twice in one turn
            few, many = sorted((ceilings, floors), key=len)
            if turn < len(many):
                pairs.setdefault(turn, []).extend((r, many[(i + turn) % len(many)]) for i, r in enumerate(few))
    found = []
    for of_turn in pairs.values():
        one, other = np.array(of_turn, dtype=np.intp).reshape(-1, 2).T
        opposite = np.all(weight[..., one, :] == -weight[..., other, :], axis=-1)
        for matrix in others:
            opposite = opposite & ~np.any((matrix[..., one, :] != 0) | (matrix[..., other, :] != 0), axis=-1)
        found.append((one, other, opposite))
    return tuple(found)


def taken(assets: Separable, at: Index) -> Separable:
    """The rows of these problems; what all share stays."""
    return Separable(
        **{
            f.name: value[at] if isinstance(value := getattr(assets, f.name), np.ndarray) else value
            for f in fields(Separable)
        }
    )


def _of_each(matrix: NDArray[T], at: Index, axes: int = 3) -> NDArray[T]:
    return matrix[at] if matrix.ndim == axes else matrix


def _column(matrix: Array, item: NDArray[np.intp], position: NDArray[np.intp]) -> Array:
    """One asset's coefficients, another asset from problem to problem: (B, m)."""
    each = np.broadcast_to(matrix, (len(item), *matrix.shape[-2:]))
    return np.asarray(each[item, :, position])


def _sum(prices: Array, matrix: Array) -> Array:
    """Σ prices · rows: (B, n), one problem at a time."""
    return np.asarray(np.matmul(prices[:, None, :], matrix)[:, 0, :])
