"""Leverage in closed form: trades to a target with their costs, recentring, leveraged tokens, hedges.

Money in any one currency; exposures and trades are signed (above zero: long, a purchase; below: short, a sale).
Costs are proportional, as in ProportionalCost: a trade x costs buy·x or sell·|x| of the equity. Raises InputError for
numbers that are not finite or out of range. NaN stands where no trade does what is asked.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from equipoise.constraints.errors import InputError
from equipoise.constraints.pieces import Array, Figure
from equipoise.optimizer.formulas.arguments import checked, ratio, together


def leverage_ratio(value: ArrayLike) -> Figure:
    """C / (C − D) of the rows of an account (last axis; debt below zero): 1/(1 − LTV). Infinite without equity."""
    v = np.atleast_1d(checked(value, "value"))
    return ratio(np.maximum(v, 0.0).sum(-1), v.sum(-1))[()]


def lever_to(
    exposure: ArrayLike, equity: ArrayLike, target: ArrayLike, *, buy: ArrayLike = 0.0, sell: ArrayLike = 0.0
) -> Figure:
    """The trade x after which the exposure is `target` times what is left of the equity.

        A + x = L·(E − c·|x|)      x = (L·E − A) / (1 + buy·L) for a purchase, (L·E − A) / (1 − sell·L) for a sale

    The same for a perpetual (A notional, E margin), for a loop (A collateral, E collateral less debt: x is bought with
    new debt, or sold to repay) and for an inverse token (L and A below zero). A loop that loses the part s of each
    borrowed unit has buy = s/(1 − s), and borrows x·(1 + buy). NaN where nothing is left of the equity, or where the
    costs take it faster than the trade lowers the leverage (sell·L ≥ 1).
    """
    A, E, L, up, down = together(
        exposure=checked(exposure, "exposure"),
        equity=checked(equity, "equity"),
        target=checked(target, "target"),
        buy=checked(buy, "buy", at_least=0.0),
        sell=checked(sell, "sell", at_least=0.0, below=1.0),
    )
    gap = L * E - A
    cost = np.where(gap > 0, up, down)
    slope = 1.0 + np.sign(gap) * cost * L
    trade = np.divide(gap, slope, out=np.full(gap.shape, np.nan), where=slope > 0)
    return np.where((E > 0) & (E - cost * np.abs(trade) > 0), trade, np.nan)[()]


def recentred(
    leverage: ArrayLike, target: ArrayLike, *, speed: ArrayLike, lowest: ArrayLike, highest: ArrayLike
) -> Figure:
    """Where a leveraged index goes next: max(lowest, min(highest, leverage·(1 − speed) + target·speed)).

    `speed`: the part of the way back at each rebalance, 0 to 1. `lever_to` at this target is the trade; without costs
    it is collateral·(next − leverage)/leverage. Source: Index Coop, FlexibleLeverageStrategyExtension
    (recenteringSpeed, minLeverageRatio, maxLeverageRatio); a ripcord goes to `highest`.
    """
    low, high = checked(lowest, "lowest"), checked(highest, "highest")
    if np.any(low > high):
        raise InputError("must not be above `highest`", column="lowest", value=lowest)
    part = checked(speed, "speed", at_least=0.0, at_most=1.0)
    moved = checked(leverage, "leverage") * (1.0 - part) + checked(target, "target") * part
    return np.maximum(low, np.minimum(high, moved))[()]


def largest_slice(
    trade: ArrayLike,
    collateral: ArrayLike,
    debt: ArrayLike,
    factor: ArrayLike,
    *,
    unused: ArrayLike = 0.0,
    at_most: ArrayLike = np.inf,
) -> Figure:
    """The part of a leverage trade that one step may do: ±min(|trade|, at_most, what the lending pool lets through).

    With the pool's limit = collateral·factor·(1 − unused): levering up borrows at most limit − debt; down withdraws
    at most collateral·(limit − debt)/limit before it repays. `collateral` and `debt` are positive amounts of money;
    `factor`: LTV (up) or liquidation threshold (down). Source: Index Coop, _calculateMaxBorrowCollateral.
    """
    held, owed = checked(collateral, "collateral", at_least=0.0), checked(debt, "debt", at_least=0.0)
    part = checked(factor, "factor", at_least=0.0, at_most=1.0)
    limit = held * part * (1.0 - checked(unused, "unused", at_least=0.0, below=1.0))
    x, room = together(trade=checked(trade, "trade"), room=np.asarray(np.maximum(limit - owed, 0.0)))
    most = np.where(x > 0, room, held * ratio(room, limit, nothing=0.0))
    step = np.minimum(np.minimum(np.abs(x), most), checked(at_most, "at_most", at_least=0.0, finite=False))
    return (np.sign(x) * step)[()]


def daily_rebalance(nav: ArrayLike, leverage: ArrayLike, move: ArrayLike) -> Figure:
    """L·(L − 1)·r·NAV: what a fund of constant leverage L trades after its underlying moved by r (NAV before it).

    With the move for L > 1 and for L < 0, nothing for L = 1 and 0. It is lever_to(L·NAV·(1 + r), NAV·(1 + L·r), L)
    without costs. Source: Cheng, Madhavan (2009), The Dynamics of Leveraged and Inverse Exchange-Traded Funds.
    """
    L = checked(leverage, "leverage")
    return (L * (L - 1.0) * checked(move, "move") * checked(nav, "nav"))[()]


def hedge_trade(
    exposure: ArrayLike,
    hedge: ArrayLike = 0.0,
    *,
    beta: ArrayLike = 1.0,
    cost: ArrayLike = 0.0,
    variance: ArrayLike = 1.0,
    aversion: float = 10.0,
    horizon: float = 1.0,
) -> Figure:
    """The trade x of a hedge that takes a net delta exposure + beta·(hedge + x) into its no-trade band around zero.

    Minimises (aversion/2)·variance·net² + cost·|x|/horizon: inside |net| ≤ cost/(horizon·aversion·variance·|beta|)
    nothing, outside to the band's edge; without costs −(exposure + beta·hedge)/beta, delta-neutral. `exposure` and
    `hedge` in fractions of NAV, `variance` annual, the rest as in Rebalancer: it is its answer for one asset. `beta`:
    how much of the exposure a unit of the hedge moves, such as a minimum-variance ratio ρ·σ/σ_hedge or an option's
    delta, not zero.
    """
    b = checked(beta, "beta")
    if np.any(b == 0):
        raise InputError("must not be zero: a hedge that does not move hedges nothing", column="beta", value=beta)
    curve = checked(aversion, "aversion", above=0.0) * checked(variance, "variance", above=0.0)
    width = checked(cost, "cost", at_least=0.0) / (checked(horizon, "horizon", above=0.0) * curve * np.abs(b))
    net = checked(exposure, "exposure") + b * checked(hedge, "hedge")
    return ((np.clip(net, -width, width) - net) / b)[()]


def carry_size(
    capital: ArrayLike, margin: ArrayLike, *, spot_cost: ArrayLike = 0.0, hedge_cost: ArrayLike = 0.0
) -> Figure:
    """capital / (1 + margin + spot_cost + hedge_cost): the long spot position and equal short perpetual it pays for.

    Delta-neutral from the first trade: each unit takes its price, the short's margin (a fraction of its notional, with
    whatever buffer is wanted) and both costs. `capital`: cash.
    """
    outlay = 1.0 + checked(margin, "margin", at_least=0.0) + checked(spot_cost, "spot_cost", at_least=0.0)
    return (checked(capital, "capital", at_least=0.0) / (outlay + checked(hedge_cost, "hedge_cost", at_least=0.0)))[()]


def improves(before: ArrayLike, after: ArrayLike, target: ArrayLike, *, tolerance: ArrayLike = 0.0) -> Figure:
    """Whether a rebalance brought a ratio nearer to its target without crossing it; at the target, whether it stayed.

    Up to `tolerance` beyond the target counts as at it. A check for leverage, health factors and collateral ratios
    alike: what a keeper may be paid for.
    """
    goal, slack = checked(target, "target"), checked(tolerance, "tolerance", at_least=0.0)
    old: Array = checked(before, "before") - goal
    new: Array = checked(after, "after") - goal
    crossed = new * np.sign(old) < -slack
    nearer = (np.abs(new) < np.abs(old)) | ((old == 0) & (np.abs(new) <= slack))
    return (nearer & ~crossed)[()]
