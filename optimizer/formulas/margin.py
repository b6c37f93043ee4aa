"""Margin accounts in closed form: tiered maintenance margin, liquidation and bankruptcy prices, what counts, who pays.

`quantity` is signed (below zero: short), `price` above zero, cash per unit; `equity` is the account's value at these
prices, cash and unrealised profit included. Notional |quantity·price| and all margins are positive money.
A table of brackets is two arrays along the last axis: `rate` and the deduction `cum` of each bracket, with

    maintenance margin = max_j (rate_j·notional − cum_j)

convex and continuous in the notional; one rate and cum = 0 is a venue without brackets.
Raises InputError for numbers that are not finite or out of range. An account below zero is a state, not an error.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from equipoise.constraints.errors import InputError
from equipoise.constraints.pieces import Array, Figure
from equipoise.constraints.rules.margin import deductions
from equipoise.optimizer.formulas.arguments import Label, checked, ratio, refusal, together


def bracket_amounts(
    floor: ArrayLike,
    rate: ArrayLike,
    published: ArrayLike | None = None,
    *,
    asset: Label | None = None,
    account: str | None = None,
) -> Array:
    """The deductions of a table: cum_1 = 0, cum_j = cum_{j−1} + floor_j·(rate_j − rate_{j−1}).

    `floor`: the notional from which a bracket's `rate` (0 to below 1, nondecreasing) holds; the first is 0. Raises
    InputError, naming the asset and the bracket, for a table that is not in order, or whose `published` amounts are
    not these (to a millionth, or a cent). Source: Binance Futures, maintenance amount in the leverage brackets.
    """
    at, part = together(floor=np.atleast_1d(checked(floor, "floor")), rate=checked(rate, "rate"))
    cum = deductions(at, part)
    given = cum if published is None else checked(published, "cum")
    steps = np.diff(at, prepend=-np.inf)
    for column, values, fits, wanted in (
        ("floor", at, np.where(np.arange(at.size) == 0, at == 0, steps > 0), "the first must be 0, the others rise"),
        ("rate", part, (part >= 0) & (part < 1), "must lie between 0 and 1"),
        ("rate", part, np.diff(part, prepend=0.0) >= 0, "must not fall with the notional"),
        ("cum", given, np.abs(given - cum) <= 1e-2 + 1e-6 * np.abs(cum), "is not what floors and rates give"),
    ):
        if np.shape(values) != at.shape or at.ndim != 1:
            raise InputError("floor, rate and cum need one number a bracket", asset=asset, column=column)
        if not np.all(fits):
            j = int(np.argmin(fits))
            raise refusal(f"bracket {j + 1}: {wanted}", account=account, asset=asset, column=column, value=values[j])
    return np.asarray(cum)


def maintenance_margin(notional: ArrayLike, rate: ArrayLike, cum: ArrayLike = 0.0) -> Figure:
    """max_j (rate_j·|notional| − cum_j), one number a notional. Source: Binance Futures."""
    lines, amounts = _lines(rate, cum)
    return np.max(np.abs(checked(notional, "notional"))[..., None] * lines - amounts, axis=-1)[()]


def _lines(rate: ArrayLike, cum: ArrayLike) -> tuple[Array, ...]:
    """The brackets along the last axis."""
    part = np.atleast_1d(checked(rate, "rate", at_least=0.0, below=1.0))
    return together(rate=part, cum=checked(cum, "cum", at_least=0.0))


def liquidation_price(
    quantity: ArrayLike,
    price: ArrayLike,
    equity: ArrayLike,
    rate: ArrayLike,
    cum: ArrayLike = 0.0,
    *,
    other: ArrayLike = 0.0,
) -> Figure:
    """The price p' at which equity + quantity·(p' − price) = maintenance margin + other: one position moves alone.

    On each bracket's line p'_j = (equity − other + cum_j − q·p) / (|q|·rate_j − q), and as the margin is their
    maximum, a long position's price is the highest of these, a short one's the lowest: no bracket need be guessed.
    `other`: maintenance margin of the account's other positions (cross margin; 0 for an isolated one, whose `equity`
    is its own margin and profit). With entry prices: price = entry, equity = wallet balance + profit of the others.
    NaN where no price above zero does it; a long position that is liquidatable now has p' above `price`, a short one
    below. Sources: dYdX v4, isolated and cross liquidation price; Binance Futures, liquidation price of USDⓈ-M
    contracts (one-way mode).
    """
    lines, amounts = _lines(rate, cum)
    q, p, E, M = together(
        quantity=checked(quantity, "quantity"),
        price=checked(price, "price", above=0.0),
        equity=checked(equity, "equity"),
        other=checked(other, "other", at_least=0.0),
    )
    level, slope = (E - M - q * p)[..., None] + amounts, np.abs(q)[..., None] * lines - q[..., None]
    roots = np.divide(level, slope, out=np.full(np.broadcast(level, slope).shape, np.nan), where=slope != 0)
    found = np.where(q > 0, roots.max(-1), roots.min(-1))
    return np.where(found > 0, found, np.nan)[()]


def bankruptcy_price(quantity: ArrayLike, price: ArrayLike, equity: ArrayLike) -> Figure:
    """price − equity/quantity: where nothing is left; NaN where no price above zero does it. Source: dYdX v4."""
    return liquidation_price(quantity, price, equity, 0.0)


def account_equity(quantity: ArrayLike, price: ArrayLike, cash: ArrayLike = 0.0) -> Figure:
    """cash + Σ quantity·price over the last axis (perpetuals: cash less what the positions were bought for)."""
    held = np.atleast_1d(checked(quantity, "quantity") * checked(price, "price", above=0.0))
    return (checked(cash, "cash") + held.sum(-1))[()]


def perpetual_balance(wallet: ArrayLike, quantity: ArrayLike, entry: ArrayLike) -> Figure:
    """wallet − Σ quantity·entry over the last axis: the quote balance Q of an account of perpetuals, signed.

    A position's row in a table has its signed size and the market's price, so that its weight is its exposure, and
    Q is the quantity of the account's quote row (below zero where longs were bought for more than the wallet). Then
    Q + Σ quantity·price is the equity, unrealised profit included. Source: dYdX v4, margining.
    """
    paid = np.atleast_1d(checked(quantity, "quantity") * checked(entry, "entry", above=0.0))
    return (checked(wallet, "wallet") - paid.sum(-1))[()]


def requirement(quantity: ArrayLike, price: ArrayLike, fraction: ArrayLike) -> Figure:
    """Σ |quantity·price|·fraction over the last axis: initial or maintenance margin. Source: dYdX v4, margining.

    Free collateral is account_equity less the initial requirement; liquidated below the maintenance requirement.
    """
    notional = np.abs(checked(quantity, "quantity")) * checked(price, "price", above=0.0)
    return np.atleast_1d(notional * checked(fraction, "fraction", at_least=0.0)).sum(-1)[()]


def open_interest_fraction(base: ArrayLike, interest: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> Figure:
    """dYdX v4's initial margin fraction: base + (1 − base)·(interest − lower)/(upper − lower), from base to 1.

    `interest`: open notional of the market; caps of zero: no scaling. The maintenance fraction does not scale.
    Source: dydxprotocol/v4-chain, LiquidityTier.GetAdjustedInitialMarginPpm.
    """
    part, low, high = checked(base, "base", at_least=0.0, at_most=1.0), checked(lower, "lower"), checked(upper, "upper")
    if np.any(low > high):
        raise InputError("must not be above the upper cap", column="lower", value=lower)
    above = checked(interest, "interest", at_least=0.0) - low
    scale = np.where(high > 0, np.where(above > 0, np.clip(ratio(above, high - low), 0.0, 1.0), 0.0), 0.0)
    return (part + (1.0 - part) * scale)[()]


def utilisation(required: ArrayLike, equity: ArrayLike) -> Figure:
    """required / equity: above 1 the requirement is broken; infinite without equity, 0 if nothing is required."""
    need = checked(required, "required", at_least=0.0)
    return np.where(need > 0, ratio(need, checked(equity, "equity")), 0.0)[()]


def counted_collateral(
    value: ArrayLike, haircut: ArrayLike = 0.0, *, cap: ArrayLike = np.inf, share: float = 1.0
) -> Array:
    """What of each collateral counts: u ≤ (1 − haircut)·value, u ≤ cap, u ≤ share·Σu; the most that keeps all three.

    With e the smaller of the first two, sorted from the largest, Σu = min over m·share < 1 of
    (Σ e without the m largest) / (1 − m·share), and u = min(e, share·Σu). Rows along the last axis; rows below zero
    are no collateral. Of fewer than 1/share kinds nothing counts. `cap`: money, one a row or one for all.
    """
    worth = np.maximum(np.atleast_1d(checked(value, "value")), 0.0)
    kept = worth * (1.0 - checked(haircut, "haircut", at_least=0.0, at_most=1.0))
    each, _ = together(value=np.minimum(kept, checked(cap, "cap", at_least=0.0, finite=False)), worth=worth)
    part = float(checked(share, "share", above=0.0, at_most=1.0))
    tail = np.flip(np.cumsum(np.sort(each, axis=-1), axis=-1), -1)  # without the 0, 1, 2, ... largest
    tail = np.concatenate([tail, np.zeros_like(tail[..., :1])], axis=-1)
    free = np.round(1.0 - part * np.arange(tail.shape[-1]), 12)  # of 49 kinds at 1/49 each, nothing is left free
    total = np.min(ratio(tail, free), axis=-1, keepdims=True)
    return np.asarray(np.minimum(each, part * total))


class Closed(NamedTuple):
    """A forced close: equity left to the owner; cost: what he lost against the marked equity; fee: the penalty within
    it; shortfall: loss past zero; covered: the insurance fund's part of it; socialised: the rest, borne by others."""

    equity: Figure
    cost: Figure
    fee: Figure
    shortfall: Figure
    covered: Figure
    socialised: Figure


def forced_close(
    quantity: ArrayLike,
    price: ArrayLike,
    equity: ArrayLike,
    fill: ArrayLike,
    *,
    fee: ArrayLike = 0.0,
    fund: ArrayLike = 0.0,
) -> Closed:
    """A liquidation of the whole position at the price `fill`, and who pays for it.

    equity + quantity·(fill − price) is left; of that the penalty fee·|quantity|·fill is taken as far as it reaches
    (dYdX v4: at most 1.5 %); below zero the fund pays first, then the others (deleveraging). Needed in the fund
    against a gap to `fill`: the shortfall. All results are positive but `cost`, which is below zero for a gain.
    """
    q, at = checked(quantity, "quantity"), checked(fill, "fill", above=0.0)
    before = checked(equity, "equity")
    after = before + q * (at - checked(price, "price", above=0.0))
    penalty = np.clip(checked(fee, "fee", at_least=0.0) * np.abs(q) * at, 0.0, np.maximum(after, 0.0))
    left, shortfall = np.maximum(after, 0.0) - penalty, np.maximum(-after, 0.0)
    covered = np.minimum(shortfall, checked(fund, "fund", at_least=0.0))
    return Closed(left[()], (before - left)[()], penalty[()], shortfall[()], covered[()], (shortfall - covered)[()])
