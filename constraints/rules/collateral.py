"""Collateral and debt: what must still be covered after the trades.

Debts are rows of negative quantity, so that a position's long part w⁺ is collateral and its short part w⁻ is debt.
Every ratio is one convex row: weighted debt − weighted collateral ≤ 0. `assets` and `account` (a label of the table's
column `account`) restrict a rule to the rows of one account of several; without them it is about the whole table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import check_number
from equipoise.constraints.pieces import Array, Bound, Envelope, Figure, Parts, Piece, Row, dot
from equipoise.constraints.rules.accounts import counted, labelled, of_account, sides
from equipoise.constraints.rules.rule import Account, Numbers, Rule, bounded, check_range
from equipoise.constraints.rules.terms import Counted


@dataclass(frozen=True)
class _Coverage(Rule):
    """What the rules here share: the rows they are about."""

    assets: Sequence[str] | None = field(default=None, kw_only=True)
    account: str | None = field(default=None, kw_only=True)

    def label_columns(self) -> tuple[str, ...]:
        return of_account(self.account)

    def _factors(self, account: Account, argument: str, at_most: float = 1.0) -> Array:
        """The part of each row that counts, 0 for the rows of other accounts."""
        rows = counted(account, self.assets, self.account)
        factor = self.numbers(account, argument, missing=0.0, where=rows)
        check_range(np.where(rows, factor, 0.0), account, argument, at_least=0.0, at_most=at_most, of=self.account)
        return np.where(rows, factor, 0.0)

    def _debts(self, account: Account) -> Array:
        """1 for each row of the account, 0 for others."""
        return counted(account, self.assets, self.account).astype(float)


def _covered(
    label: str,
    at_least: float,
    collateral: Array,
    debt: Array,
    upper: Figure = 0.0,
    *,
    liquidation: float | None = None,
) -> Row:
    """Σ collateral·w⁺ ≥ at_least · Σ w⁻ − upper, reported as the ratio of the two."""
    return Row(
        label=label,
        long=-collateral,
        short=at_least * debt,
        upper=upper,
        at_least=True,
        limit=at_least,
        per=Parts(short=debt),
        relaxed=upper,
        liquidation=liquidation,
    )


@dataclass(frozen=True)
class HealthFactor(_Coverage, stacks=True, blanks=("threshold",)):
    """Σ thresholdᵢ·wᵢ⁺ ≥ at_least · Σ wⱼ⁻: the health factor of a lending account (Aave v3).

    `threshold`: the liquidation threshold of each asset as collateral, 0 to 1 (0 or blank: none). `emode` names the
    category that the account is in, one of `emodes`, which gives the thresholds of the assets in it; the others keep
    their own. With no debt the health factor is infinite.
    Source: Aave v3 protocol, health factor = Σ collateral·LT / debt; efficiency mode.
    """

    at_least: float
    threshold: Numbers
    emode: str | None = None
    emodes: Mapping[str, Mapping[str, float]] | None = None

    def __post_init__(self) -> None:
        check_number(self.at_least, "at_least", above=0.0)
        if self.emodes is not None and not isinstance(self.emodes, Mapping):
            raise InputError("must give each category's thresholds by asset", column="emodes", value=self.emodes)
        known = self.emodes or {}
        if self.emode and (not isinstance(self.emode, str) or self.emode not in known):
            of = "" if self.account is None else f"account {self.account!r}: "
            names = ", ".join(known) or "none"
            raise InputError(f"{of}there is no such e-mode (known: {names})", column="emode", value=self.emode)

    def pieces(self, account: Account) -> Sequence[Piece]:
        most = min(1.0, self.at_least)
        threshold = self._factors(account, "threshold", most)
        if self.emode and self.emodes is not None:
            inside = account.numbers(self.emodes[self.emode], "emodes", missing=-1.0)
            check_range(np.where(inside == -1.0, 0.0, inside), account, "emodes", at_least=0.0, at_most=most)
            threshold = np.where((inside != -1.0) & (self._debts(account) > 0), inside, threshold)
        label, debts = labelled("health factor", self.account), self._debts(account)
        return (_covered(label, self.at_least, threshold, debts, liquidation=1.0),)


@dataclass(frozen=True)
class LoanToValue(_Coverage, stacks=True):
    """Σ wⱼ⁻ ≤ at_most · Σ wᵢ⁺: debt over collateral. `counts`: the part of each asset that is collateral (1)."""

    at_most: float
    counts: Numbers = 1.0

    def __post_init__(self) -> None:
        check_number(self.at_most, "at_most", above=0.0)
        if self.at_most > 1:
            raise InputError("is a fraction of the collateral, at most 1", column="at_most", value=self.at_most)

    def pieces(self, account: Account) -> Sequence[Piece]:
        collateral, debt = self._factors(account, "counts"), self._debts(account)
        per = Parts(long=collateral)
        return (
            Row(
                label=labelled("loan to value", self.account),
                long=-self.at_most * collateral,
                short=debt,
                upper=0.0,
                limit=self.at_most,
                per=per,
            ),
        )


@dataclass(frozen=True)
class BorrowLimit(_Coverage, stacks=True, blanks=("borrow", "liquidation")):
    """Σ borrowᵢ·wᵢ⁺ ≥ Σ wⱼ⁻ for who borrows or withdraws, and Σ liquidationᵢ·wᵢ⁺ ≥ at_least · Σ wⱼ⁻ always.

    `borrow`, `liquidation`: Compound III's borrow and liquidate collateral factors (Aave's LTV and liquidation
    threshold), 0 ≤ borrow ≤ liquidation ≤ 1; blank: no collateral. `at_least` of 1 or more is the buffer above
    liquidation. An account that is beyond its borrow limit already may not go further beyond, nor owe more of
    anything; the plan's message says by how much it is. Source: Comet, isBorrowCollateralized and isLiquidatable.
    """

    borrow: Numbers
    liquidation: Numbers
    at_least: float = 1.0

    def __post_init__(self) -> None:
        check_number(self.at_least, "at_least", at_least=1.0)

    def pieces(self, account: Account) -> Sequence[Piece]:
        borrow = self._factors(account, "borrow")
        liquidation, debt = self._factors(account, "liquidation"), self._debts(account)
        crossed = liquidation < borrow
        if crossed.any():
            i = account.first(crossed)
            of = "" if self.account is None else f"account {self.account!r}: "
            text = f"{of}must be at least the borrow factor {borrow[i]:g}, or who borrows is liquidated"
            raise InputError(text, asset=account.assets[i], column="liquidation", value=liquidation[i])
        before = account.before
        over = dot(debt, np.maximum(-before, 0.0)) - dot(borrow, np.maximum(before, 0.0))
        no_more = (np.asarray(over)[..., None] > 0) & (debt > 0)
        return (
            _covered(labelled("borrow limit", self.account), 1.0, borrow, debt, np.maximum(over, 0.0)),
            _covered(labelled("liquidation limit", self.account), self.at_least, liquidation, debt, liquidation=1.0),
            bounded("no more debt beyond the borrow limit", no_more, np.minimum(before, 0.0)),
        )


@dataclass(frozen=True)
class CollateralRatio(_Coverage, stacks=True, blanks=("factor", "cap")):
    """Σ factorᵢ·wᵢ⁺ ≥ at_least · Σ wⱼ⁻: collateral over debt (Maker's collateralisation ratio; 1/LTV).

    `factor`: the part of each asset that counts as collateral, 1 − haircut, 0 to 1 (default: all of it; blank: none).
    Concentration limits: of each asset counts at most `cap` (money; blank: no limit), and at most the part `share` of
    all that counts. With these, collateral stays collateral: no row that counts may be sold short.
    """

    at_least: float
    factor: Numbers = 1.0
    cap: Numbers | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        check_number(self.at_least, "at_least", above=0.0)
        check_share(self.share)

    def pieces(self, account: Account) -> Sequence[Piece]:
        factor = self._factors(account, "factor", min(1.0, self.at_least))
        debt = self._debts(account)
        if self.cap is None and self.share is None:
            return (_covered(labelled("collateral ratio", self.account), self.at_least, factor, debt),)
        kept, bound, cap = limited(account, factor, self.cap, "collateral with concentration limits", self.account)
        row = _covered(labelled("collateral ratio", self.account), self.at_least, np.zeros_like(factor), debt)
        return (Envelope(row, (Counted(kept, cap, self.share or 1.0, 1.0),)), bound)


def check_share(share: float | None) -> None:
    """A concentration limit: above 0, at most 1."""
    if share is not None:
        check_number(share, "share", above=0.0)
        if share > 1:
            raise InputError("is a part of all that counts, at most 1", column="share", value=share)


def limited(
    account: Account, factor: Array, cap: Numbers | None, why: str, of: str | None
) -> tuple[Array, Bound, Array]:
    """For concentration limits: what counts of the rows that are no debts, the bound that keeps it so, and the caps."""
    side, bound = sides(account, factor > 0, why)
    caps = np.full(account.shape, np.inf)
    if cap is not None:
        caps = account.numbers(cap, "cap", missing=np.inf, blank=True)
        check_range(caps, account, "cap", at_least=0.0, at_most=np.inf, of=of)
    return np.where(side > 0, factor, 0.0), bound, caps / account.nav
