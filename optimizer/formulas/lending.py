"""Lending accounts in closed form: their ratios, how far prices may fall, and the least trade that restores them.

`value` is what each row of one account is worth, in the signs of a table: collateral above zero, debt below, in any
one currency or in fractions of NAV. Rows are the last axis, accounts the axes before it; `threshold` (one number a
row, or one for all) is the part of a collateral that counts. With

    C = v⁺,   D = Σ v⁻,   W = Σ threshold·C

a floor W ≥ h·D is the rule of every lending protocol:

    Aave v3, health factor          threshold: liquidation thresholds          h = 1 at liquidation
    Compound III                    threshold: liquidate (or borrow) factors   h = 1
    Maker/Sky, collateral ratio     threshold: 1                               h = liquidation ratio, such as 1.5
    loan to value of at most ℓ      threshold: 1                               h = 1/ℓ

so that `at_least` = h means the same to all functions here as to the rules HealthFactor and CollateralRatio.
Trading costs are those of ProportionalCost: a sale of y brings in (1 − sell)·y, and repaying r takes (1 + buy)·r of
cash. Amounts that are returned are positive. Raises InputError for numbers that are not finite or out of range.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from equipoise.constraints.pieces import Array, Figure
from equipoise.optimizer.formulas.arguments import checked, ratio, together


def _sides(value: ArrayLike, threshold: ArrayLike) -> tuple[Array, Array]:
    """threshold·C and v⁻ of each row."""
    counted = checked(threshold, "threshold", at_least=0.0, at_most=1.0)
    v, counted = together(value=np.atleast_1d(checked(value, "value")), threshold=counted)
    return counted * np.maximum(v, 0.0), np.maximum(-v, 0.0)


def health_factor(value: ArrayLike, threshold: ArrayLike) -> Figure:
    """W / D, one number an account; infinite without debt. Aave v3: liquidated below 1.

    Source: Aave v3, GenericLogic.calculateUserAccountData. Compound III's accounts are liquidated where this, with
    liquidate collateral factors, is below 1.
    """
    covered, debt = _sides(value, threshold)
    return ratio(covered.sum(-1), debt.sum(-1))[()]


def collateral_ratio(value: ArrayLike, factor: ArrayLike = 1.0) -> Figure:
    """Σ factor·C / D, one number an account; infinite without debt. Maker/Sky: ink·price / (art·rate), 1/LTV."""
    return health_factor(value, factor)


def loan_to_value(value: ArrayLike) -> Figure:
    """D / Σ C, one number an account; zero without debt, infinite for a debt without collateral."""
    covered, debt = _sides(value, 1.0)
    owed = debt.sum(-1)
    return np.where(owed > 0, ratio(owed, covered.sum(-1)), 0.0)[()]


def borrow_capacity(value: ArrayLike, factor: ArrayLike) -> Figure:
    """Σ factor·C − D: what the account may still borrow (below zero: by how much it owes too much).

    `factor`: Aave's LTV or Compound III's borrow collateral factor of each row, not the liquidation threshold.
    """
    covered, debt = _sides(value, factor)
    return (covered - debt).sum(-1)[()]


def threshold_slope(value: ArrayLike) -> Figure:
    """∂(health factor)/∂threshold = C / D of each row: what a change of its factor does; zero without debt."""
    covered, debt = _sides(value, 1.0)
    return ratio(covered, debt.sum(-1, keepdims=True), nothing=0.0)


def liquidation_price(value: ArrayLike, price: ArrayLike, threshold: ArrayLike, *, at: ArrayLike = 1.0) -> Array:
    """The price of each row at which the health factor is `at`, all other prices as they are.

    Collateral j: (at·D − Σ_{i≠j} W_i) / (thresholdⱼ·quantityⱼ), below it the account is liquidated; debt j:
    (W − at·Σ_{i≠j} D_i) / (at·quantityⱼ), above it. NaN where no price above zero does that: for collateral the
    others are enough, for debt they are not. `price`: above zero, one a row.
    """
    excess, prices = together(value=_excess(value, threshold, at), price=checked(price, "price", above=0.0))
    others = excess.sum(-1, keepdims=True) - excess
    found = np.divide(-others, excess, out=np.full(excess.shape, np.nan), where=excess != 0) * prices
    return np.where(found > 0, found, np.nan)


def liquidation_drop(
    value: ArrayLike, threshold: ArrayLike, *, falls: ArrayLike | None = None, at: ArrayLike = 1.0
) -> Figure:
    """The common fall t of prices, to 1 − t·falls, at which the health factor is `at`, one number an account.

    t = Σ a / Σ falls·a with a = threshold·C − at·D of each row. `falls` is how much of the shock each row takes:
    all collateral and no debt unless given (then t = 1 − at/health factor); 1 for both sides of the same coin, below
    zero for what rises. Infinite where not even a fall to zero does it; zero or less where the account is there now.
    """
    excess = _excess(value, threshold, at)
    shock: Array = (excess > 0).astype(float) if falls is None else checked(falls, "falls")
    excess, shock = together(value=excess, falls=shock)
    slack, slope = excess.sum(-1), (shock * excess).sum(-1)
    fall = np.where(slope > 0, ratio(slack, slope), np.where(slack < 0, -np.inf, 0.0))
    return np.where((slack > 0) & (slack * shock.max(-1) >= slope), np.inf, fall)[()]


def _excess(value: ArrayLike, threshold: ArrayLike, at: ArrayLike) -> Array:
    """a = threshold·C − at·D of each row: Σ a ≥ 0 is the rule."""
    covered, debt = _sides(value, threshold)
    return np.asarray(covered - checked(at, "at", above=0.0)[..., None] * debt)


def _needed(covered: Array, debt: Array, floor: Array) -> Array:
    """(D − W/h)⁺: the repayment that restores the ratio, and 1/h of the amount that W is short of."""
    return np.asarray(np.maximum(debt.sum(-1) - covered.sum(-1) / floor, 0.0))


def to_repay(value: ArrayLike, threshold: ArrayLike, at_least: ArrayLike, *, buy: ArrayLike = 0.0) -> Figure:
    """Cash from outside the account that restores the ratio by repaying: (1 + buy)·(D − W/h)⁺, one an account."""
    covered, debt = _sides(value, threshold)
    needed = _needed(covered, debt, checked(at_least, "at_least", above=0.0))
    return ((1.0 + checked(buy, "buy", at_least=0.0)) * needed)[()]


def to_add(value: ArrayLike, threshold: ArrayLike, at_least: ArrayLike, *, buy: ArrayLike = 0.0) -> Array:
    """Cash from outside that restores the ratio if it is spent on more of row j: (1 + buyⱼ)·(h·D − W)⁺/thresholdⱼ.

    One number a row: infinite for rows that do not count, zero where the ratio is kept. A debt's row stands for
    that much of it as collateral. Never less than `to_repay` at the same cost, as thresholds are at most h.
    """
    covered, debt = _sides(value, threshold)
    floor = checked(at_least, "at_least", above=0.0)
    short = (floor * _needed(covered, debt, floor))[..., None]
    counted, cost = together(threshold=checked(threshold, "threshold"), buy=checked(buy, "buy", at_least=0.0))
    return np.where(short > 0, (1.0 + cost) * ratio(short, counted), 0.0) + np.zeros(covered.shape)


def to_sell(
    value: ArrayLike, threshold: ArrayLike, at_least: ArrayLike, *, sell: ArrayLike = 0.0, buy: ArrayLike = 0.0
) -> Array:
    """The value of collateral j whose sale, all of it repaid, restores the ratio: (h·D − W)⁺ / (h·k − thresholdⱼ).

    k = (1 − sell)/(1 + buy) is what a unit sold repays. One number a row: infinite where that row cannot do it alone
    (h·k ≤ thresholdⱼ, or more than there is), zero where the ratio is kept. `sell`: one a row; `buy`: one an account.
    For LTV ≤ ℓ (threshold 1, h = 1/ℓ) this is (D − ℓC)/(k − ℓ).
    """
    covered, debt = _sides(value, threshold)
    floor = checked(at_least, "at_least", above=0.0)
    short = (floor * _needed(covered, debt, floor))[..., None]
    gain = floor[..., None] * _repaid_by(sell, buy) - checked(threshold, "threshold")
    amount = np.where(short > 0, ratio(short, gain), 0.0) + np.zeros(covered.shape)
    return np.where(amount <= np.maximum(checked(value, "value"), 0.0), amount, np.inf)


def _repaid_by(sell: ArrayLike, buy: ArrayLike) -> Array:
    """k: what a unit of collateral sold repays, one a row."""
    proceeds = 1.0 - checked(sell, "sell", at_least=0.0, below=1.0)
    return np.asarray(proceeds / (1.0 + checked(buy, "buy", at_least=0.0)[..., None]))


class Repair(NamedTuple):
    """The least trade that restores a ratio; amounts of the account's currency, all positive.

    sold: collateral sold of each row; wallet: cash spent from outside; repaid: debt repaid by both; cost: trading
    costs within them; missing: cash that would still be needed, where all that helps is sold and the ratio not reached.
    """

    sold: Array
    wallet: Figure
    repaid: Figure
    cost: Figure
    missing: Figure


def repair(
    value: ArrayLike,
    threshold: ArrayLike,
    at_least: ArrayLike,
    *,
    wallet: ArrayLike = 0.0,
    sell: ArrayLike = 0.0,
    buy: ArrayLike = 0.0,
) -> Repair:
    """Restores W ≥ h·D with the least traded value Σ sold + repaid, from `wallet` and from the collateral itself.

    A unit repaid from the wallet helps by h, at one unit traded: nothing helps more, so it comes first. A unit of
    collateral j sold and repaid helps by h·k − thresholdⱼ at 1 + k traded; the best ratios are sold first (a linear
    program with one row: greedy is exact). At equal cost rates it is also the cheapest. `sell`: one a row; `buy`
    (of the debt repaid) and `wallet` (cash, the repayment's cost to be paid from it): one an account.
    """
    covered, debt = _sides(value, threshold)
    floor, spend = checked(at_least, "at_least", above=0.0), 1.0 + checked(buy, "buy", at_least=0.0)
    needed = _needed(covered, debt, floor)
    outside = np.minimum(checked(wallet, "wallet", at_least=0.0) / spend, needed)
    short = floor * (needed - outside)

    held = np.maximum(checked(value, "value"), 0.0)
    k = _repaid_by(sell, buy)
    gain = floor[..., None] * k - checked(threshold, "threshold")
    held, k, gain, _ = together(value=held, sell=k, at_least=gain, threshold=covered + short[..., None])
    order = np.argsort(-gain / (1.0 + k), axis=-1, kind="stable")
    each = np.take_along_axis(np.maximum(gain, 0.0) * held, order, -1)
    used = np.clip(short[..., None] - (np.cumsum(each, -1) - each), 0.0, each)
    sold = np.zeros(held.shape)
    np.put_along_axis(sold, order, used, -1)
    sold = np.minimum(ratio(sold, gain, nothing=0.0), held)

    repaid = outside + (k * sold).sum(-1)
    cost = (spend - 1.0) * repaid + (checked(sell, "sell") * sold).sum(-1)
    left = np.maximum(short - each.sum(-1), 0.0)
    return Repair(sold, (outside * spend)[()], repaid[()], cost[()], (left / floor * spend)[()])
