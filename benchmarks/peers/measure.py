"""Quality, in our own numpy and the same for every peer: a rigorous lower bound, and what is compared with it.

For any prices λ of the factors, ν of the budget and μ ≥ 0 of the rows, every feasible w has

    objective(w) ≥ −|λ|²/(2·aversion) − λᵀFb − ν − μᵀupper + Σᵢ min over [lᵢ, uᵢ] of fᵢ

where fᵢ(w) = ½·aversion·d²ᵢ(w − bᵢ)² + costᵢ|w − w₀ᵢ| + ½·penalty·(w − w₀ᵢ)² + (Fᵀλ + ν − gain)ᵢ·w + the rows' terms
at their prices, because ½γ|F(w − b)|² ≥ λᵀF(w − b) − |λ|²/(2γ). Each fᵢ is convex and piecewise quadratic with kinks
at 0 and w₀: its least value is at a kink, at a bound, or where one of its pieces is flat, so that the least of the
values there is exact.
"""

from __future__ import annotations

import numpy as np

from .instances import Array, Instance

TRADED = 1e-7  # of NAV; less than this is not an order


def lower_bound(
    instance: Instance, factor_prices: Array, budget_price: float, row_prices: Array | None = None
) -> float:
    """A number that no feasible objective is below, whatever the prices are."""
    p, rows = instance, instance.rows
    slope = p.factors.T @ factor_prices + budget_price - (p.gain if p.gain is not None else 0.0)
    constant = -0.5 * float(factor_prices @ factor_prices) / p.aversion - float(factor_prices @ (p.factors @ p.target))
    constant -= budget_price
    long: Array | float = 0.0
    short: Array | float = 0.0
    buy = sell = p.cost
    if rows is not None and row_prices is not None:
        prices = np.maximum(row_prices, 0.0)
        constant -= float(prices @ rows.upper)
        slope = slope + prices @ rows.weight
        long, short = prices @ rows.long, prices @ rows.short
        buy, sell = p.cost + prices @ rows.buy, p.cost + prices @ rows.sell
    curvature = p.aversion * p.specific

    def value(w: Array) -> Array:
        z = w - p.before
        smooth = 0.5 * curvature * (w - p.target) ** 2 + 0.5 * p.penalty * z**2 + slope * w
        return np.asarray(smooth + np.where(w > 0, long, -short) * w + np.where(z > 0, buy, -sell) * z)

    at = [p.lower, p.upper, np.clip(p.before, p.lower, p.upper), np.clip(0.0, p.lower, p.upper)]
    stiffness = curvature + p.penalty
    for side in (long, -short):
        for rate in (buy, -sell):
            pull = curvature * p.target + p.penalty * p.before - slope - side - rate
            flat = np.divide(pull, stiffness, out=p.lower.copy(), where=stiffness > 0)
            at.append(np.clip(flat, p.lower, p.upper))
    return constant + float(np.sum(np.min([value(w) for w in at], axis=0)))


def trades(instance: Instance, w: Array) -> int:
    """How many assets trade, the cash not counted."""
    moved = np.abs(w - instance.before) > TRADED
    return int(np.sum(moved[:-1] if instance.cash else moved))
