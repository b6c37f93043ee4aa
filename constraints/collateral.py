"""Collateral, debt and margin: what must still be covered after the trades.

Debts and shorts are rows of negative quantity, so that a position's long part w⁺ is collateral and its
short part w⁻ is debt. Every ratio is one convex row: weighted debt − weighted collateral ≤ 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.constraints.base import (
    Account,
    Array,
    Numbers,
    Parts,
    Piece,
    Row,
    Rule,
    check_number,
    check_range,
)

_LARGEST_RATE = 100.0  # a margin of a hundred times the position: an infinite one would not be a number


def _coverage(label: str, at_least: float, collateral: Array) -> Row:
    """Σ collateral·w⁺ ≥ at_least · Σ w⁻, reported as the ratio of the two."""
    debt = np.ones_like(collateral)
    return Row(
        label=label,
        long=-collateral,
        short=at_least * debt,
        upper=0.0,
        at_least=True,
        limit=at_least,
        per=Parts(short=debt),
    )


@dataclass(frozen=True)
class HealthFactor(Rule, stacks=True):
    """Σ thresholdᵢ·wᵢ⁺ ≥ at_least · Σ wⱼ⁻: the health factor of a lending account (Aave v3).

    `threshold`: the liquidation threshold of each asset as collateral, 0 to 1 (0 or blank: none). With no
    debt the health factor is infinite. Source: Aave v3 protocol, health factor = Σ collateral·LT / debt.
    """

    at_least: float
    threshold: Numbers

    def __post_init__(self) -> None:
        check_number(self.at_least, "at_least", above=0.0)

    def pieces(self, account: Account) -> Sequence[Piece]:
        threshold = account.numbers(self.threshold, "threshold", missing=0.0)
        check_range(threshold, account, "threshold", at_least=0.0, at_most=min(1.0, self.at_least))
        return (_coverage("health factor", self.at_least, threshold),)


@dataclass(frozen=True)
class CollateralRatio(Rule, stacks=True):
    """Σ factorᵢ·wᵢ⁺ ≥ at_least · Σ wⱼ⁻: collateral over debt (Maker's collateralisation ratio; 1/LTV).

    `factor`: the part of each asset that counts as collateral, 0 to 1 (default: all of it; blank: none).
    """

    at_least: float
    factor: Numbers = 1.0

    def __post_init__(self) -> None:
        check_number(self.at_least, "at_least", above=0.0)

    def pieces(self, account: Account) -> Sequence[Piece]:
        factor = account.numbers(self.factor, "factor", missing=0.0)
        check_range(factor, account, "factor", at_least=0.0, at_most=min(1.0, self.at_least))
        return (_coverage("collateral ratio", self.at_least, factor),)


@dataclass(frozen=True)
class InitialMargin(Rule, stacks=True):
    """Σ rateᵢ·|wᵢ| ≤ utilisation · (Σ (1 − haircutᵢ)·wᵢ⁺ − Σ wⱼ⁻): initial margin within the equity.

    `rate`: the margin rate of each position (0.5 under Regulation T; blank or cash: 0); `haircut`: the part
    of a long position that does not count as equity. `utilisation` below 1 keeps a buffer. Reported as
    margin over equity. Source: account equity against the sum of initial margins (dYdX v4; FINRA 4210).
    """

    rate: Numbers
    haircut: Numbers = 0.0
    utilisation: float = 1.0

    def __post_init__(self) -> None:
        check_number(self.utilisation, "utilisation", above=0.0)

    def pieces(self, account: Account) -> Sequence[Piece]:
        rate = account.numbers(self.rate, "rate", cash=0.0, missing=0.0)
        haircut = account.numbers(self.haircut, "haircut", missing=0.0)
        check_range(rate, account, "rate", at_least=0.0, at_most=_LARGEST_RATE)
        check_range(haircut, account, "haircut", at_least=0.0, at_most=1.0)
        return (
            Row(
                label="initial margin",
                long=rate - self.utilisation * (1.0 - haircut),
                short=rate + self.utilisation,
                upper=0.0,
                limit=self.utilisation,
                per=Parts(long=1.0 - haircut, short=-np.ones_like(rate)),
            ),
        )
