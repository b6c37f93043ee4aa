"""Margin: what positions need against what counts as equity.

    Σᵢ margin(|wᵢ|)  ≤  utilisation · (Σ (1 − haircutᵢ)·wᵢ⁺ − Σ wⱼ⁻)

over the rows of one account (`assets`, `account`: see `collateral`). A perpetual position has a row of quantity
`size` and the account's quote balance a row of wallet − Σ size·entry price, which may be below zero: together they are
worth the equity (dYdX v4, margining; `equipoise.optimizer.formulas.margin.perpetual_balance`). `utilisation` below 1
keeps a buffer. Rows without a margin of their own are collateral, of which concentration limits may count only a part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import check_number, number
from equipoise.constraints.pieces import Array, Envelope, Fields, Parts, Piece, Row, Term
from equipoise.constraints.rules.accounts import counted, labelled, of_account
from equipoise.constraints.rules.collateral import check_share, limited
from equipoise.constraints.rules.rule import Account, Numbers, Rule, check_range
from equipoise.constraints.rules.terms import Brackets, Counted

_LARGEST_RATE = 100.0  # a margin of a hundred times the position: an infinite one would not be a number


def deductions(floor: ArrayLike, rate: ArrayLike) -> Array:
    """cum of each bracket along the last axis, so that margin = max_j (rate_j·notional − cum_j):

    cum_j = cum_{j−1} + floor_j·(rate_j − rate_{j−1}). Source: Binance Futures, maintenance amount.
    """
    part = np.asarray(rate, dtype=float)
    return np.asarray(np.cumsum(floor * np.diff(part, prepend=part[..., :1]), axis=-1))


@dataclass(frozen=True)
class _Margin(Rule, blanks=("cap",)):
    """What the margin rules share."""

    cap: Numbers | None = field(default=None, kw_only=True)
    share: float | None = field(default=None, kw_only=True)
    assets: Sequence[str] | None = field(default=None, kw_only=True)
    account: str | None = field(default=None, kw_only=True)

    def label_columns(self) -> tuple[str, ...]:
        return of_account(self.account)

    def _check_use(self, utilisation: float) -> None:
        check_number(utilisation, "utilisation", above=0.0)
        check_share(self.share)

    def _pieces(
        self, account: Account, label: str, rate: Array, offset: Array | None, given: Numbers, utilisation: float
    ) -> Sequence[Piece]:
        """`rate`, `offset`: (…, n, J), the brackets of each row; without offsets J is 1. `given`: the haircuts."""
        rows = counted(account, self.assets, self.account)
        haircut = account.numbers(given, "haircut", missing=0.0, where=rows)
        check_range(np.where(rows, haircut, 0.0), account, "haircut", at_least=0.0, at_most=1.0, of=self.account)
        kept, owed = np.where(rows, 1.0 - haircut, 0.0), rows.astype(float)
        rate = np.where(rows[..., None], rate, 0.0)
        shown: Fields = {"label": labelled(label, self.account), "upper": 0.0, "limit": utilisation}
        shown["per"] = Parts(long=kept, short=-owed)
        bounds: list[Piece] = []
        terms: list[Term] = []
        straight = kept
        if self.cap is not None or self.share is not None:
            posted = np.where(np.any(rate > 0, axis=-1), 0.0, kept)
            counts, bound, cap = limited(account, posted, self.cap, "collateral with limits", self.account)
            terms.append(Counted(counts, cap, self.share or 1.0, utilisation))
            bounds.append(bound)
            straight = np.where(posted > 0, 0.0, kept)
        long, short = (utilisation * part for part in (-straight, owed))
        if offset is None:
            row = Row(long=rate[..., 0] + long, short=rate[..., 0] + short, **shown)
            return (Envelope(row, tuple(terms)), *bounds) if terms else (row,)
        shown["liquidation"] = 1.0  # of tiers, which are those of maintenance
        offset = np.where(rows[..., None], offset, 0.0)
        terms.insert(0, Brackets(rate + long[..., None], rate + short[..., None], offset))
        return (Envelope(Row(**shown), tuple(terms)), *bounds)


@dataclass(frozen=True)
class InitialMargin(_Margin, stacks=True, blanks=("rate",), own=("haircut",)):
    """Σ rateᵢ·|wᵢ| ≤ utilisation · (Σ (1 − haircutᵢ)·wᵢ⁺ − Σ wⱼ⁻): initial margin within the equity.

    `rate`: the margin rate of each position (0.5 under Regulation T; blank or cash: 0); `haircut`: the part
    of a long position that does not count as equity. `utilisation` below 1 keeps a buffer. Reported as
    margin over equity. `cap` (money an asset; blank: no limit) and `share` (of all that counts) limit what counts of
    rows without a margin of their own. Source: account equity against the sum of initial margins (dYdX v4; FINRA 4210).
    """

    rate: Numbers
    haircut: Numbers = 0.0
    utilisation: float = 1.0

    def __post_init__(self) -> None:
        self._check_use(self.utilisation)

    def pieces(self, account: Account) -> Sequence[Piece]:
        rate = self.numbers(account, "rate", cash=0.0, missing=0.0)
        check_range(rate, account, "rate", at_least=0.0, at_most=_LARGEST_RATE, of=self.account)
        return self._pieces(account, "initial margin", rate[..., None], None, self.haircut, self.utilisation)


def _columns(asset: str, pairs: Sequence[tuple[float, float]]) -> tuple[Array, Array]:
    """The notionals and the rates of an asset's brackets."""
    try:
        table = np.array([[number(x, asset, "brackets") for x in (floor, rate)] for floor, rate in pairs])
    except (TypeError, ValueError):  # an InputError is one, too
        raise InputError(
            "must be pairs (notional from which on, rate)", asset=asset, column="brackets", value=pairs
        ) from None
    floor, rate = table.T if len(table) else (np.zeros(1), np.array([np.nan]))
    return floor, rate


@dataclass(frozen=True)
class MaintenanceMargin(_Margin, stacks=True, own=("haircut",)):
    """Σᵢ max_j (rateᵢⱼ·|wᵢ| − cumᵢⱼ) ≤ utilisation · (Σ (1 − haircutᵢ)·wᵢ⁺ − Σ wⱼ⁻): tiered maintenance margin.

    `brackets`: for each asset its pairs (notional in cash from which on, rate), the first from 0; rates from 0 to
    below 1 that do not fall. Each slice of the notional has the rate of its own bracket; the cum are made of them.
    Assets that are not named need none. The other arguments are as in InitialMargin (a blank `cap`: no limit).
    Source: Binance Futures, leverage and margin brackets: max_j (rate_j·notional − cum_j).
    """

    brackets: Mapping[str, Sequence[tuple[float, float]]]
    haircut: Numbers = 0.0
    utilisation: float = 1.0

    def __post_init__(self) -> None:
        self._check_use(self.utilisation)
        if not isinstance(self.brackets, Mapping) or not self.brackets:
            raise InputError("must give the brackets of some asset", column="brackets", value=self.brackets)
        for asset, pairs in self.brackets.items():
            self._check(asset, pairs)

    def _check(self, asset: str, pairs: Sequence[tuple[float, float]]) -> None:
        floor, rate = _columns(asset, pairs)
        steps = np.diff(floor, prepend=-1.0)
        for j, (at, step, part, rise) in enumerate(zip(floor, steps, rate, np.diff(rate, prepend=0.0), strict=True)):
            first = j == 0
            if not (0 <= part < 1 and rise >= 0 and np.isfinite(at) and (at == 0 if first else step > 0)):
                of = "" if self.account is None else f"account {self.account!r}: "
                problem = "notionals start at 0 and rise, rates lie between 0 and 1 and do not fall"
                raise InputError(
                    f"{of}bracket {j + 1}: {problem}", asset=asset, column="brackets", value=(float(at), float(part))
                )

    def pieces(self, account: Account) -> Sequence[Piece]:
        most = max(len(pairs) for pairs in self.brackets.values())
        tables = {
            asset: np.array([*pairs, *[pairs[-1]] * (most - len(pairs))], float)
            for asset, pairs in self.brackets.items()
        }

        def each(values: Mapping[str, Array]) -> Array:
            columns = [
                account.numbers({asset: float(v[j]) for asset, v in values.items()}, "brackets", cash=0.0, missing=0.0)
                for j in range(most)
            ]
            return np.stack(columns, axis=-1)

        rate = each({asset: table[:, 1] for asset, table in tables.items()})
        cum = each({asset: deductions(table[:, 0], table[:, 1]) for asset, table in tables.items()})
        offset = cum / np.asarray(account.nav)[..., None]
        return self._pieces(account, "maintenance margin", rate, offset, self.haircut, self.utilisation)
