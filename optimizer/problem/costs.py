"""What trading and holding cost, asset by asset; trading costs are paid out of the cash.

Users give plain rates and market figures; here they become, for each asset and in fractions of NAV,

    φ(z) = Σ buyᵢ·zᵢ⁺ + sellᵢ·zᵢ⁻ + quadraticᵢ·zᵢ² + impactᵢ·|zᵢ|^{3/2}

the one-off cost of the trades z, which the objective divides by the horizon, and longᵢ·wᵢ⁺ + shortᵢ·wᵢ⁻ for
what holding the weights w costs a year. All of this is convex. What an order costs beyond it, because it is an order
at all, is not (`Fees`): convex programs leave it out, which makes them a bound, and the search over orders counts it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from typing import TypeVar

import numpy as np

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import LARGEST
from equipoise.constraints.pieces import Array, Index
from equipoise.constraints.rules.rule import Account, Declared, Numbers, check_range, refuse

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class CostTerms:
    """The coefficients of φ, one number an asset, all ≥ 0 and zero for the settlement cash; and what
    holding costs: `long` and `short` a year, long + short ≥ 0. Arrays (n,), or (B, n) for a stack."""

    buy: Array
    sell: Array
    quadratic: Array
    impact: Array
    long: Array
    short: Array

    @classmethod
    def of(cls, shape: int | tuple[int, ...], **given: Array) -> CostTerms:
        """These coefficients, and zero for those not given."""
        return cls(**{f.name: given.get(f.name, np.zeros(shape)) for f in fields(cls)})

    def of_assets(self, positions: Index) -> CostTerms:
        """The coefficients at these positions."""
        return CostTerms(*(getattr(self, f.name)[..., positions] for f in fields(self)))

    def carry(self, weights: Array) -> Array:
        """What holding each asset costs a year, in fractions of NAV."""
        return np.where(weights > 0, self.long, -self.short) * weights

    def each(self, trades: Array) -> Array:
        """φ of each asset's trade, in fractions of NAV."""
        size = np.abs(trades)
        cost = np.where(trades > 0, self.buy, self.sell) * size
        if self.quadratic.any():  # most costs are plain rates, and powers take time
            cost = cost + self.quadratic * size**2
        if self.impact.any():
            cost = cost + self.impact * size * np.sqrt(size)
        return np.asarray(cost)


@dataclass(frozen=True, eq=False)
class Fees:
    """What orders cost beyond the convex terms: `fixed`, and what a commission of `rate` lacks to `minimum`.

        fixedᵢ + max(0, minimumᵢ − rateᵢ·|zᵢ|)   where zᵢ ≠ 0,   0 where it is 0

    fixed and minimum in cash, rate a fraction of the trade, one number an asset, zero for the settlement cash.
    """

    fixed: Array
    minimum: Array
    rate: Array
    nav: float

    def each(self, trades: Array) -> Array:
        """The fee of each asset's trade, in fractions of NAV."""
        lacking = np.maximum(self.minimum / self.nav - self.rate * np.abs(trades), 0.0)
        return np.where(trades != 0, self.fixed / self.nav + lacking, 0.0)

    @property
    def most(self) -> Array:
        """What no order's fee is above, in fractions of NAV."""
        return np.asarray((self.fixed + self.minimum) / self.nav)

    @property
    def kinks(self) -> Array:
        """The size of a trade from which on the minimum is reached, in fractions of NAV; 0 where there is none."""
        return np.divide(self.minimum / self.nav, self.rate, out=np.zeros_like(self.rate), where=self.rate > 0)


class Cost(Declared, ABC):
    """A cost: `terms` gives its coefficients for one portfolio, and with `stacks` those of a stack."""

    @abstractmethod
    def terms(self, account: Account) -> CostTerms: ...

    def fees(self, account: Account) -> Fees | None:
        """What it costs to have an order at all; None for costs that are convex."""
        return None


@dataclass(frozen=True)
class ProportionalCost(Cost, stacks=True):
    """rate · |trade|: commissions, half of the bid-ask spread, taxes on one side.

    `buy` and `sell` are fractions of the traded value (0.001 is 10 basis points); `sell` is `buy` unless
    given. A sale cannot cost more than it brings in: sell < 1.
    """

    buy: Numbers = 0.0
    sell: Numbers | None = None

    def terms(self, account: Account) -> CostTerms:
        buy = self.numbers(account, "buy", cash=0.0)
        sell = buy if self.sell is None else self.numbers(account, "sell", cash=0.0)
        check_range(buy, account, "buy", at_least=0.0)
        check_range(sell, account, "sell", at_least=0.0, at_most=np.nextafter(1.0, 0.0))
        return CostTerms.of(account.shape, buy=buy, sell=sell)


@dataclass(frozen=True)
class ImpactCost(Cost, stacks=True, own=("volatility", "volume")):
    """coefficient · volatility · |trade|^{3/2} / √volume: the square-root law of market impact.

    `volatility` is that of one day (a fraction), `volume` one day's turnover in cash. Trading a whole day's
    volume moves the price by `coefficient` daily volatilities. Source: Boyd et al. (2017), Multi-Period
    Trading via Convex Optimization, eq. 2.2, where the coefficient is of order one.
    """

    volatility: Numbers
    volume: Numbers
    coefficient: Numbers = 1.0

    def terms(self, account: Account) -> CostTerms:
        volatility = self.numbers(account, "volatility", cash=0.0)
        volume = self.numbers(account, "volume", cash=1.0)
        coefficient = self.numbers(account, "coefficient", cash=0.0)
        check_range(volatility, account, "volatility", at_least=0.0)
        check_range(coefficient, account, "coefficient", at_least=0.0)
        _check_volume(volume, account)
        return CostTerms.of(account.shape, impact=coefficient * volatility * np.sqrt(account.nav / volume))


@dataclass(frozen=True)
class QuadraticCost(Cost, stacks=True, own=("volume",)):
    """rate · trade² / volume, both in cash: trading the whole `volume` costs `rate` of it.

    Without `volume`, rate · z² in fractions of NAV.
    """

    rate: Numbers
    volume: Numbers | None = None

    def terms(self, account: Account) -> CostTerms:
        rate = self.numbers(account, "rate", cash=0.0)
        check_range(rate, account, "rate", at_least=0.0)
        if self.volume is not None:
            volume = self.numbers(account, "volume", cash=1.0)
            _check_volume(volume, account)
            rate = rate * account.nav / volume
        return CostTerms.of(account.shape, quadratic=rate)


@dataclass(frozen=True)
class HoldingCost(Cost, stacks=True, blanks=("long", "short")):
    """long·w⁺ + short·w⁻ a year: funding and custody of what is held, interest on what is borrowed.

    Annual rates as fractions (0.035 is 3.5 % a year); blank: 0. A number is for all assets but the cash; a
    column or a mapping may give the cash a rate, too. A negative rate is income: a yield on a
    holding, with a borrowing rate at least as high for the same asset (long + short ≥ 0), or the objective
    would not be convex.
    """

    long: Numbers = 0.0
    short: Numbers = 0.0

    def terms(self, account: Account) -> CostTerms:
        long, short = (
            # A number for all is not for the cash; a column or a mapping may name it.
            self.numbers(account, argument, missing=0.0, cash=None if isinstance(given, str | Mapping) else 0.0)
            for given, argument in ((self.long, "long"), (self.short, "short"))
        )
        for rates, argument in ((long, "long"), (short, "short")):
            check_range(rates, account, argument, at_least=-LARGEST)
        check_range(long + short, account, "long + short", at_least=0.0)
        return CostTerms.of(account.shape, long=long, short=short)


@dataclass(frozen=True)
class FixedFee(Cost, blanks=("fee",)):
    """`fee` in cash for each order, whatever its size: a ticket, gas. Blank: none.

    Not convex: the search over orders counts it, and so do the cash and every figure of the plan.
    """

    fee: Numbers

    def terms(self, account: Account) -> CostTerms:
        return CostTerms.of(account.shape)

    def fees(self, account: Account) -> Fees:
        fee = self.numbers(account, "fee", cash=0.0, missing=0.0)
        check_range(fee, account, "fee", at_least=0.0)
        none = np.zeros(account.shape)
        return Fees(fee, none, none, account.nav)


@dataclass(frozen=True)
class MinimumCommission(Cost, blanks=("minimum",)):
    """max(minimum, rate · |trade|) for each order: a commission with a floor. `minimum` in cash, blank: none; `rate` a
    fraction of the traded value, the same for buys and sales and below 1.

    Not convex: its convex hull is rate · |trade|, which is what convex programs see; the search over orders counts
    all of it, and so do the cash and every figure of the plan.
    """

    minimum: Numbers
    rate: Numbers = 0.0

    def terms(self, account: Account) -> CostTerms:
        rate = self.numbers(account, "rate", cash=0.0, missing=0.0)
        check_range(rate, account, "rate", at_least=0.0, at_most=np.nextafter(1.0, 0.0))
        return CostTerms.of(account.shape, buy=rate, sell=rate)

    def fees(self, account: Account) -> Fees:
        minimum = self.numbers(account, "minimum", cash=0.0, missing=0.0)
        check_range(minimum, account, "minimum", at_least=0.0)
        rate = np.where(minimum > 0, self.terms(account).buy, 0.0)
        return Fees(np.zeros(account.shape), minimum, rate, account.nav)


def told(one: Declared, make: Callable[[Account], _T], account: Account) -> _T:
    """What a rule or a cost makes of this account; where an argument names a column, its errors name that, too."""
    try:
        return make(account)
    except InputError as error:
        column = getattr(one, str(error.column), None)
        number = error.asset is not None and isinstance(error.value, float)
        if not (number and isinstance(column, str) and column != error.column):
            raise
        problem = f"{error.column}: {error.problem}"
        raise InputError(problem, asset=error.asset, column=column, value=error.value) from None


def total_fees(costs: Sequence[Cost], account: Account) -> Fees | None:
    """The sum of these costs' fees; None if there are none."""
    found = [fees for cost in costs if (fees := told(cost, cost.fees, account)) is not None]
    several = np.sum([fees.minimum > 0 for fees in found], axis=0) > 1
    if np.any(several):
        raise InputError(
            "two costs give it a minimum commission; give one",
            asset=account.assets[account.first(several)],
            column="MinimumCommission",
        )
    if not any(np.any(fees.most) for fees in found):
        return None
    fixed, minimum, rate = (np.sum([getattr(f, x) for f in found], axis=0) for x in ("fixed", "minimum", "rate"))
    return Fees(fixed, minimum, rate, account.nav)


def total(costs: Sequence[Cost], account: Account) -> CostTerms:
    """The sum of these costs' coefficients."""
    terms = [told(cost, cost.terms, account) for cost in costs] or [CostTerms.of(account.shape)]
    summed = CostTerms(*(reduce(np.add, [getattr(term, f.name) for term in terms]) for f in fields(CostTerms)))
    problem = "selling costs at least what it brings in; the rates are fractions (0.001 is 10 basis points)"
    refuse(summed.sell >= 1, summed.sell, account, "sell", problem)
    return summed


def _check_volume(volume: Array, account: Account) -> None:
    problem = "a volume must be above zero; forbid the trade (NoTrade) where there is none"
    refuse(volume <= 0, volume, account, "volume", problem)
