"""The closed form: separable risk and costs, bounds, and the cash as the one budget; whole batches in numpy.

Without factors every asset follows its own threshold rule (`separable`): inside its no-trade interval it is
held, outside it goes to the edge, clipped to its bounds. Assets meet only in the cash,

    Σ x + φ(x − w₀) ≤ 1 − floor  (price s ≥ 0)    or    Σ x ≥ 1 − cap  (price −s ≥ 0),

and every x is a nonincreasing function of the one price s. Where x reaches a kink or a bound, s has a closed
form; on the sorted breakpoints the right segment is found by bisection, O(n log n), and there the answer is a
linear interpolation: exact, also where an asset without curvature jumps. Quadratic and 3/2-power costs bend
the segments; then the segment is narrowed to rounding first.
Source: Brucker (1984) and Kiwiel (2008) for the continuous quadratic knapsack; costs paid from the cash are ours.

Also the test for doing nothing, which is exact for any covariance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from equipoise.constraints.base import Array
from equipoise.optimizer.certificate import certified
from equipoise.optimizer.problem import Problem
from equipoise.optimizer.separable import Separable
from equipoise.optimizer.solution import FEASIBILITY_TOLERANCE, ROUNDING_TOLERANCE, Prices, Solution, Status

_DOUBLINGS = 64
_NARROWINGS = 200


def refusal(problem: Problem) -> str | None:
    """Why the closed form does not take this problem; None if it does."""
    if not problem.risk.is_diagonal:
        return "the risk has factors (assets move together)"
    if problem.risk.specific[problem.cash] > 0:
        return "the settlement cash has a risk of its own"
    if problem.cost.long[problem.cash] or problem.cost.short[problem.cash]:
        return "holding the settlement cash has a cost or a yield of its own"
    if problem.cones:
        return f"{problem.cones[0][0]} is a cone"
    if problem.opaque:
        return f"{problem.opaque[0][0]} is a cvxpy expression"
    rows = problem.rows
    for title, row in zip(rows.titles, rows.rows, strict=True):
        if not _is_cash_floor(row, problem.cash):
            return f"{title} couples assets by a row other than the cash"
    return None


def _is_cash_floor(row: Any, cash: int) -> bool:
    others = all(getattr(row, name) is None for name in ("long", "short", "buy", "sell"))
    return (
        others and row.weight is not None and np.flatnonzero(row.weight).tolist() == [cash] and row.weight[cash] == -1
    )


def solve(problems: Sequence[Problem]) -> list[Solution | None]:
    """The exact answers of these problems, all of the same number of assets; None where it declines.

    It declines (does not guess) where no price meets the cash's limits: the problem is infeasible, or both
    limits of the cash bind at once.
    """
    if not problems:
        return []
    cash = np.array([p.cash for p in problems])
    floor_price, cap_price, weights, solved = thresholds(
        replace_cash(_stacked(problems), cash),
        horizon=np.array([p.horizon for p in problems]),
        floor=np.array([_floor(p) for p in problems]),
        cap=np.array([p.upper[p.cash] for p in problems]),
    )
    answers: list[Solution | None] = []
    for i, problem in enumerate(problems):
        w = problem.settled(weights[i])
        if not solved[i] or problem.violation(w) > FEASIBILITY_TOLERANCE:
            answers.append(None)
            continue
        rows = np.zeros(len(problem.rows.rows))
        if len(rows):
            rows[np.argmin(problem.rows.upper)] = floor_price[i]  # the highest floor binds
        answers.append(certified(problem, w, Prices(rows, np.zeros(0), floor_price[i] - cap_price[i]), "threshold"))
    return answers


def _floor(problem: Problem) -> float:
    # When `refusal` is None, all rows are floors of the cash, written −w_c ≤ −floor.
    return float(-np.min(problem.rows.upper)) if len(problem.rows.upper) else -np.inf


def _stacked(problems: Sequence[Problem]) -> Separable:
    parts = [p.separable(np.zeros(len(p.assets)), np.zeros(len(p.rows.rows))) for p in problems]
    names = Separable.__dataclass_fields__
    return Separable(**{name: np.stack([getattr(part, name) for part in parts]) for name in names})


def replace_cash(assets: Separable, cash: Any) -> Separable:
    """The same with the cash held at 0, so that sums over assets are sums over all others."""
    at = (np.arange(len(assets.lower)), cash)
    fixed = {name: np.array(getattr(assets, name), dtype=float) for name in ("curvature", "before", "lower", "upper")}
    for values in fixed.values():
        values[at] = 0.0
    return replace(assets, **fixed)


@dataclass(frozen=True, eq=False)
class _Priced:
    """x(s) for a batch: the separable problem with costs in the objective, and the cash's price s."""

    assets: Separable
    horizon: Array

    def at(self, price: Array) -> Array:
        """x (B, n) at prices s (B,): costs count s more where s is a floor's price."""
        s = price[:, None]
        # `assets` has its costs divided by the horizon already.
        factor = 1.0 + self.horizon[:, None] * np.maximum(s, 0.0)
        a = self.assets
        return replace(
            a,
            slope=s,
            buy=a.buy * factor,
            sell=a.sell * factor,
            quadratic=a.quadratic * factor,
            impact=a.impact * factor,
        ).minimiser()

    def cost(self, weights: Array) -> Array:
        """φ (B,), one-off."""
        a = self.assets
        priced = replace(a, curvature=0.0, slope=0.0, long=0.0, short=0.0)  # what is left is trading
        return np.asarray(self.horizon * priced.value(weights).sum(axis=-1))

    def breakpoints(self, floor: bool) -> Array:
        """Every price at which some x reaches a bound or a kink, or leaves it: (B, 8n), infinite where none."""
        a, h = self.assets, self.horizon[:, None]
        found = []
        for at, side in product((a.lower, a.before, np.zeros_like(a.before), a.upper), (-1.0, 1.0)):
            trade = at - a.before
            direction = np.where(trade != 0, np.sign(trade), side)
            holding = np.where((at > 0) | ((at == 0) & (side > 0)), a.long, -a.short)
            size = np.abs(trade)
            rate = np.where(direction > 0, a.buy, a.sell) + 2 * a.quadratic * size + 1.5 * a.impact * np.sqrt(size)
            # Stationarity a(x − b) + holding ± rate + s·(1 ± horizon·rate) = 0, solved for s.
            inner = a.curvature * (at - a.centre) + holding + direction * rate
            per_price = 1.0 + direction * h * rate if floor else np.ones_like(rate)
            with np.errstate(divide="ignore", invalid="ignore"):
                found.append(np.where(per_price > 0, -inner / per_price, np.inf))
        return np.concatenate(found, axis=-1)


def thresholds(assets: Separable, *, horizon: Array, floor: Array, cap: Array) -> tuple[Array, Array, Array, Array]:
    """The exact optimum of a batch: (floor price, cap price, weights (B, n), solved).

    `assets`: coefficients (B, n), costs divided by the horizon, the cash's column fixed at 0.
    """
    model = _Priced(assets, horizon)
    nothing = np.zeros(len(horizon))
    weights = model.at(nothing)
    price = nothing.copy()

    def need(s: Array, rows: Any) -> tuple[Array, Array]:
        part = _rows(model, rows)
        x = part.at(s)
        return x.sum(axis=-1) + part.cost(x), x

    def held(s: Array, rows: Any) -> tuple[Array, Array]:
        x = _rows(model, rows).at(s)
        return x.sum(axis=-1), x

    solved = np.ones(len(horizon), dtype=bool)
    total = weights.sum(axis=-1)
    short = np.flatnonzero(total + model.cost(weights) > 1.0 - floor)
    idle = np.flatnonzero(total < 1.0 - cap)
    for rows, function, level, upwards in ((short, need, 1.0 - floor, True), (idle, held, 1.0 - cap, False)):
        if len(rows):
            points = _rows(model, rows).breakpoints(upwards)
            x, s, ok = _crossing(lambda s, f=function, r=rows: f(s, r), level[rows], points, upwards)
            weights[rows], price[rows], solved[rows] = x, s, ok & solved[rows]
    return np.maximum(price, 0.0), np.maximum(-price, 0.0), weights, solved


def _rows(model: _Priced, rows: Any) -> _Priced:
    names = Separable.__dataclass_fields__
    return _Priced(Separable(**{name: getattr(model.assets, name)[rows] for name in names}), model.horizon[rows])


def _crossing(function: Any, level: Array, points: Array, upwards: bool) -> tuple[Array, Array, Array]:
    """Where a nonincreasing function of the price crosses `level`, starting at price 0 (weights, price, found).

    `upwards`: the function is too high at 0 and the price is above 0; otherwise the other way round.
    """
    sign = 1.0 if upwards else -1.0
    distance = np.sort(np.where(sign * points > 0, sign * points, np.inf), axis=-1)

    def above(d: Array) -> tuple[Array, Array]:
        """How far the function at distance d is on the near side of the level (≥ 0: not yet crossed)."""
        value, x = function(sign * d)
        return sign * (value - level), x

    # Bisection on the sorted breakpoints for the last one that is not yet across.
    count = np.isfinite(distance).sum(axis=-1)
    low, high = np.full(len(level), -1), count.copy()
    rows = np.arange(len(level))
    while np.any(high - low > 1):
        middle = (low + high) // 2
        active = high - low > 1
        probe = distance[rows, np.minimum(middle, distance.shape[1] - 1)]
        probe = np.where(active & np.isfinite(probe), probe, 0.0)
        near = above(probe)[0] > 0
        low = np.where(active & near, middle, low)
        high = np.where(active & ~near, middle, high)
    left = np.where(low >= 0, distance[rows, np.maximum(low, 0)], 0.0)
    right = np.where(high < count, distance[rows, np.minimum(high, distance.shape[1] - 1)], np.nan)
    # Beyond the last breakpoint only costs that bend still move: go on by doubling.
    beyond = np.isnan(right)
    right = np.where(beyond, np.maximum(2.0 * left, 1e-6), right)
    for _ in range(_DOUBLINGS):
        if not np.any(far := beyond & (above(right)[0] > 0)):
            break
        right = np.where(far, 2.0 * right, right)
    return (*_narrowed(above, left, right, sign),)


def _narrowed(above: Any, left: Array, right: Array, sign: float) -> tuple[Array, Array, Array]:
    """Close in on the crossing between `left` (not across) and `right`, then interpolate the weights.

    On a linear segment the first interpolation is exact; on a curved one, secant steps with bisection.
    """
    f_left, x_left = above(left)
    f_right, x_right = above(right)
    # A sum in another order may miss a level that is reached exactly.
    found = (f_right <= ROUNDING_TOLERANCE) & (f_left >= 0)
    done = ~found
    for step in range(_NARROWINGS):
        with np.errstate(invalid="ignore", divide="ignore"):
            part = np.where(f_left > f_right, f_left / (f_left - f_right), 0.5)
        middle = left + np.clip(part if step % 3 < 2 else 0.5, 0.0, 1.0) * (right - left)
        f_middle, x_middle = above(middle)
        guess = x_left + part[:, None] * (x_right - x_left)
        # Linear in between: what interpolation says is what the rule says.
        straight = np.max(np.abs(guess - x_middle), axis=-1) <= 1e-15 if step % 3 < 2 else np.zeros(len(left), bool)
        done = done | straight | ~((left < middle) & (middle < right))  # once done, whatever the others need
        if np.all(done):
            break
        across = f_middle <= 0
        move = ~done
        left, f_left = np.where(move & ~across, middle, left), np.where(move & ~across, f_middle, f_left)
        right, f_right = np.where(move & across, middle, right), np.where(move & across, f_middle, f_right)
        x_left = np.where((move & ~across)[:, None], x_middle, x_left)
        x_right = np.where((move & across)[:, None], x_middle, x_right)
    with np.errstate(invalid="ignore", divide="ignore"):
        part = np.where(f_left > f_right, np.minimum(f_left / (f_left - f_right), 1.0), 0.0)
    weights = x_left + part[:, None] * (x_right - x_left)
    return weights, sign * (left + part * (right - left)), found


def holding(problem: Problem) -> Solution | None:
    """Hold, if that is optimal, for any covariance: with g = aversion·Σ(w₀ − b), if w₀ keeps every rule and

        max over what may be sold of (g − sell/horizon)  ≤  min over what may be bought of (g + buy/horizon)

    (the slopes of the objective at w₀ to the left and to the right; holding costs add theirs to g). It is "only
    if" as well while no row binds at w₀; where one does, holding may be optimal without this test seeing it.
    Source: the optimality condition of the budget-constrained problem (Dybvig and Pezzo 2019).
    """
    before = problem.before
    below_zero = ((problem.lower == 0) & (before < 0)) | ((problem.upper == 0) & (before > 0))
    if below_zero.any() or problem.violation(before) > ROUNDING_TOLERANCE:
        return None
    away, factors = before - problem.target, problem.risk.factors
    slopes = problem.separable(problem.aversion * (factors @ away) @ factors, Prices.none(problem).rows)
    sells = np.where(before > problem.lower, slopes.derivative(before, -1), -np.inf)
    buys = np.where(before < problem.upper, slopes.derivative(before, 1), np.inf)
    if np.max(sells) > np.min(buys):
        return None
    worst, best = float(np.max(sells)), float(np.min(buys))
    budget = -(worst if np.isinf(best) else best if np.isinf(worst) else 0.5 * (worst + best))
    prices = replace(Prices.none(problem), budget=budget)
    return replace(certified(problem, before.copy(), prices, "holding"), status=Status.NO_TRADE)
