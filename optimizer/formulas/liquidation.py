"""What liquidations do to a lending account, as the protocols define them.

`value`: what each row of one account is worth, collateral above zero, debt below, in the currency of the limits
given (dollars, for Aave's minimum of 2,000). Rows are the last axis, accounts the axes before it; `collateral` and
`debt` are positions on it. Whoever is not liquidatable comes back as he is. Floats, not the contracts' integers.
Raises InputError for numbers that are not finite or out of range; an account that is under water is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from equipoise.constraints.pieces import Array, Figure
from equipoise.optimizer.formulas.arguments import checked, together
from equipoise.optimizer.formulas.lending import health_factor

_CLOSE_FACTOR = 0.5  # Aave v3, LiquidationLogic: of the account's whole debt
_FULL_CLOSE_BELOW = 0.95  # health factor up to which the whole debt may be closed


def heals(health: ArrayLike, threshold: ArrayLike, bonus: ArrayLike) -> Figure:
    """Whether a liquidation raises the health factor: HF > threshold·(1 + bonus), those of the collateral seized.

    Where it is false each step makes the next one likelier: a spiral that ends in bad debt. `bonus`: 0.05 for 5 %.
    Source: Warmuz, Chaudhary, Pinna (2022), Toxic Liquidation Spirals, arXiv 2212.07306.
    """
    return (checked(health, "health", above=0.0) > _claimed(threshold, bonus))[()]


def health_after(
    health: ArrayLike, threshold: ArrayLike, bonus: ArrayLike, *, close_factor: ArrayLike = _CLOSE_FACTOR
) -> Figure:
    """The health factor after the part `close_factor` of the debt is repaid against one collateral that suffices.

    (HF − threshold·(1 + bonus)·close_factor) / (1 − close_factor); `close_factor` from 0 to below 1.
    """
    part = checked(close_factor, "close_factor", at_least=0.0, below=1.0)
    return ((checked(health, "health", above=0.0) - _claimed(threshold, bonus) * part) / (1.0 - part))[()]


def _claimed(threshold: ArrayLike, bonus: ArrayLike) -> Array:
    """By how much a unit of repaid debt reduces the collateral that counts."""
    part = checked(threshold, "threshold", at_least=0.0, at_most=1.0)
    return np.asarray(part * (1.0 + checked(bonus, "bonus", at_least=0.0)))


def bad_debt(value: ArrayLike, bonus: ArrayLike = 0.0) -> Figure:
    """(D − Σ C/(1 + bonus))⁺: the debt that is left when liquidators have taken all collateral, one an account."""
    v = np.atleast_1d(checked(value, "value"))
    worth = np.where(v > 0, v / (1.0 + checked(bonus, "bonus", at_least=0.0)), v)
    return np.maximum(-worth.sum(-1), 0.0)[()]


class Liquidation(NamedTuple):
    """What a liquidation left and took; amounts are positive, one an account.

    value: the rows after it; repaid: debt that was paid for; seized: collateral that was lost; fee: what the protocol
    earned; deficit: debt that nobody paid for, borne by the protocol; cost: what the owner lost (below zero: gained,
    as his bad debt was forgiven).
    """

    value: Array
    repaid: Figure
    seized: Figure
    fee: Figure
    deficit: Figure
    cost: Figure


def _outcome(before: Array, after: Array, repaid: Array, seized: Array, fee: Array, deficit: Array) -> Liquidation:
    cost = before.sum(-1) - after.sum(-1)
    return Liquidation(after, repaid[()], seized[()], fee[()], deficit[()], cost[()])


def _moved(value: Array, changes: Mapping[int, Array]) -> Array:
    after = np.array(value)
    for row, change in changes.items():
        after[..., row] += change
    return after


def aave(
    value: ArrayLike,
    threshold: ArrayLike,
    collateral: int,
    debt: int,
    *,
    bonus: ArrayLike,
    protocol_fee: ArrayLike = 0.0,
    minimum: ArrayLike = 2000.0,
) -> Liquidation:
    """The largest liquidation that Aave v3 allows one liquidator, where the health factor is below 1.

    Repaid: the debt row, at most half of the account's whole debt; all of it if HF ≤ 0.95 or if the collateral or the
    debt row is below `minimum`; and no more than the collateral row pays for. Seized: (1 + bonus)·repaid, of which
    the part `protocol_fee` of the bonus goes to the protocol. What is left of both rows is either nothing of one or
    at least `minimum`/2 of each. If no collateral is left in the account, all its debt is written off.
    Source: aave-v3-origin, LiquidationLogic.executeLiquidationCall (v3.3 and later).
    """
    v, counted = together(value=np.atleast_1d(checked(value, "value")), threshold=checked(threshold, "threshold"))
    price = 1.0 + checked(bonus, "bonus", at_least=0.0)
    part = checked(protocol_fee, "protocol_fee", at_least=0.0, at_most=1.0)
    least = checked(minimum, "minimum", at_least=0.0)
    health = health_factor(v, counted)
    held, owed = np.maximum(v[..., collateral], 0.0), np.maximum(-v[..., debt], 0.0)
    total = np.maximum(-v, 0.0).sum(-1)

    half = (held >= least) & (owed >= least) & (health > _FULL_CLOSE_BELOW)
    allowed = np.where(half, np.minimum(owed, _CLOSE_FACTOR * total), owed) * (health < 1.0)
    empties = (held <= allowed * price) & (allowed > 0.0)
    leaving = np.minimum(owed - least / 2.0, (held - least / 2.0) / price)
    repaid = np.where(half & ~empties & (allowed < owed), np.minimum(allowed, leaving), allowed)
    repaid = np.where(empties, held / price, repaid)
    seized = np.where(empties, held, repaid * price)

    after = _moved(v, {collateral: -seized, debt: repaid})
    bankrupt = (seized > 0) & (np.maximum(after, 0.0).sum(-1) == 0.0)
    deficit = np.where(bankrupt, np.maximum(-after, 0.0).sum(-1), 0.0)
    after = np.where(bankrupt[..., None], 0.0, after)
    return _outcome(v, after, repaid, seized, part * (seized - repaid), deficit)


def compound(value: ArrayLike, liquidate_factor: ArrayLike, base: int, *, liquidation_factor: ArrayLike) -> Liquidation:
    """Compound III's absorb, where Σ liquidate_factor·C < D: all collateral pays the debt (the base row), at a penalty.

    The account keeps a base balance of (Σ liquidation_factor·C − D)⁺; the protocol bears the deficit and its fee is
    Σ (1 − liquidation_factor)·C. Factors: one a row or one for all. Source: compound-finance/comet, Comet.absorb.
    """
    v = np.atleast_1d(checked(value, "value"))
    kept = checked(liquidation_factor, "liquidation_factor", at_least=0.0, at_most=1.0)
    sinks = np.asarray(health_factor(v, liquidate_factor) < 1.0)
    held = np.where(sinks[..., None], np.maximum(v, 0.0), 0.0)
    owed, credit = np.where(sinks, np.maximum(-v[..., base], 0.0), 0.0), (kept * held).sum(-1)
    repaid = np.minimum(owed, credit)
    after = v - held
    after[..., base] += owed + (credit - repaid)
    return _outcome(v, after, repaid, held.sum(-1), held.sum(-1) - credit, owed - repaid)


def discounted_price(price: ArrayLike, front: ArrayLike, liquidation_factor: ArrayLike) -> Figure:
    """price·(1 − front·(1 − liquidation_factor)): at which Compound III sells absorbed collateral.

    `front`: the market's storeFrontPriceFactor, 0 to 1. Source: compound-finance/comet, Comet.quoteCollateral.
    """
    kept = checked(liquidation_factor, "liquidation_factor", at_least=0.0, at_most=1.0)
    discount = checked(front, "front", at_least=0.0, at_most=1.0) * (1.0 - kept)
    return (checked(price, "price", above=0.0) * (1.0 - discount))[()]


def maker(
    value: ArrayLike,
    ratio: ArrayLike,
    collateral: int,
    debt: int,
    *,
    penalty: ArrayLike,
    dust: ArrayLike = 0.0,
    room: ArrayLike = np.inf,
    discount: ArrayLike = 0.0,
) -> Liquidation:
    """The auction of a Maker/Sky vault (the rows `collateral` and `debt`), where collateral < ratio·debt.

    Debt up to room/(1 + penalty) is taken, all of it if less than `dust` would stay, and the same part of the
    collateral is auctioned until it has raised (1 + penalty) times that; the rest comes back. `discount`: how far
    below the price the auction sells; `penalty`: 0.13 for 13 %. Source: makerdao/dss, Dog.bark and Clipper.take.
    """
    v = np.atleast_1d(checked(value, "value"))
    claim = 1.0 + checked(penalty, "penalty", at_least=0.0)
    brought = 1.0 - checked(discount, "discount", at_least=0.0, below=1.0)
    held, owed = np.maximum(v[..., collateral], 0.0), np.maximum(-v[..., debt], 0.0)
    unsafe = held < checked(ratio, "ratio", at_least=1.0) * owed

    taken = np.minimum(owed, checked(room, "room", at_least=0.0, finite=False) / claim)
    least = checked(dust, "dust", at_least=0.0)
    taken = np.where(owed - taken < least, owed, np.where(taken < least, 0.0, taken)) * unsafe
    lot = np.divide(held * taken, owed, out=np.zeros(np.shape(taken)), where=owed > 0)
    sold = np.minimum(lot, taken * claim / brought)
    raised = sold * brought
    after = _moved(v, {collateral: -sold, debt: taken})
    repaid = np.minimum(raised, taken)
    return _outcome(v, after, repaid, sold, raised - repaid, taken - repaid)
