"""Rules on sums of weights: leverage, groups, factors, tracking error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import LARGEST, check_number
from equipoise.constraints.pieces import Array, Cone, Figure, Piece, Row, dot
from equipoise.constraints.rules.accounts import counted, labelled, of_account
from equipoise.constraints.rules.rule import Account, Numbers, Rule, check_range, exempted, ones

#: One limit for every label, or a limit for each label named.
Limits: TypeAlias = float | Mapping[str, float]


@dataclass(frozen=True)
class Leverage(Rule, stacks=True):
    """gross: Σ|w| ≤ gross; net: Σ w ≤ net; over all assets but the cash and those in `except_`."""

    gross: float | None = None
    net: float | None = None
    except_: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.gross is None and self.net is None:
            raise InputError("give gross=, net= or both", column="Leverage")
        if self.gross is not None:
            check_number(self.gross, "gross", at_least=0.0)
        if self.net is not None:
            check_number(self.net, "net")

    def pieces(self, account: Account) -> Sequence[Piece]:
        counted = np.where(exempted(account, self.except_), 0.0, ones(account))
        rows = []
        if self.gross is not None:
            rows.append(Row(label="gross leverage", long=counted, short=counted, upper=self.gross))
        if self.net is not None:
            rows.append(Row(label="net leverage", weight=counted, upper=self.net))
        return rows


@dataclass(frozen=True)
class GroupLimit(Rule, stacks=True):
    """lower ≤ Σ w over the assets of one label ≤ upper, for the labels of the column `by`.

    A number limits every label, a mapping only the labels it names. The cash counts where it has a label.
    """

    by: str
    upper: Limits | None = None
    lower: Limits | None = None

    def __post_init__(self) -> None:
        _check_limits(self.upper, self.lower, "GroupLimit")

    def pieces(self, account: Account) -> Sequence[Piece]:
        known = account.members(self.by)
        rows = []
        for limits, argument in ((self.upper, "upper"), (self.lower, "lower")):
            for label, limit in _by_name(limits, list(known)):
                check_number(limit, f"{argument} of {self.by} {label}")
                if argument == "lower" and limit > 0 and label not in known:
                    raise InputError(
                        f"no asset has the label {label!r} in the column {self.by!r}, so that the limit cannot be kept",
                        column=argument,
                        value=limit,
                    )
                if label in known:
                    member = known[label].astype(float)
                    rows.append(_limited(f"{self.by} {label}", member, limit, argument == "lower"))
        return rows

    def label_columns(self) -> tuple[str, ...]:
        return (self.by,)


@dataclass(frozen=True)
class FactorLimit(Rule, stacks=True, own=("loadings",)):
    """lower ≤ Σ loading·w ≤ upper for each factor; with `relative`, of w − b instead of w.

    `loadings`: the name of a column, a mapping by asset, or a mapping of such by factor's name. Limits are
    numbers, or mappings by factor. The cash has no loading unless a mapping or column names one.
    """

    loadings: Numbers | Mapping[str, Numbers]
    upper: Limits | None = None
    lower: Limits | None = None
    relative: bool = False

    def __post_init__(self) -> None:
        _check_limits(self.upper, self.lower, "FactorLimit")
        if isinstance(self.loadings, Mapping) and not self.loadings:
            raise InputError("must name a column, or give a loading for some asset", column="loadings", value={})

    def pieces(self, account: Account) -> Sequence[Piece]:
        factors = self._by_factor()
        cash = ~account.positions(None, "loadings")
        loadings = {
            name: account.numbers(given, f"loadings of {name}", missing=0.0, blank=cash)
            for name, given in factors.items()
        }
        for name, loading in loadings.items():
            check_range(loading, account, f"loadings of {name}", at_least=-LARGEST)
        rows = []
        for limits, argument in ((self.upper, "upper"), (self.lower, "lower")):
            for name, limit in _by_name(limits, list(factors)):
                check_number(limit, f"{argument} of {name}")
                if name not in loadings:
                    raise InputError(
                        f"there is no factor {name!r}; there are {', '.join(loadings)}", column=argument, value=limit
                    )
                shift = dot(loadings[name], account.target) if self.relative else 0.0
                rows.append(_limited(name, loadings[name], limit, argument == "lower", shift))
        return rows

    def _by_factor(self) -> Mapping[str, Numbers]:
        if isinstance(self.loadings, str):
            return {self.loadings: self.loadings}
        if isinstance(self.loadings, Mapping) and all(isinstance(v, str | Mapping) for v in self.loadings.values()):
            return self.loadings
        return {self.title: self.loadings}  # type: ignore[dict-item]


def _check_limits(upper: Limits | None, lower: Limits | None, rule: str) -> None:
    if upper is None and lower is None:
        raise InputError("give upper=, lower= or both", column=rule)


def _by_name(limits: Limits | None, names: Sequence[str]) -> list[tuple[str, float]]:
    """Each limit with its name: one number is for all the names, a mapping says for which."""
    if limits is None:
        return []
    return list(limits.items()) if isinstance(limits, Mapping) else [(name, limits) for name in names]


def _limited(label: str, weight: Array, limit: float, at_least: bool, shift: Figure = 0.0) -> Row:
    """weight·w − shift ≤ limit, or ≥ limit; `shift` a float or (B,)."""
    if at_least:
        return Row(label=label, weight=-weight, upper=-(limit + shift), limit=limit, at_least=True)
    return Row(label=label, weight=weight, upper=limit + shift, limit=limit)


@dataclass(frozen=True)
class TrackingErrorLimit(Rule, stacks=True):
    """√((w − b)ᵀ Σ (w − b)) ≤ limit: annual, a fraction (0.02 is two per cent); needs a risk model."""

    limit: float

    def __post_init__(self) -> None:
        check_number(self.limit, "limit", at_least=0.0)

    def pieces(self, account: Account) -> Sequence[Piece]:
        return (
            Cone(
                label="tracking error",
                upper=self.limit,
                matrix=account.risk_factors,
                diagonal=np.sqrt(account.risk_specific),
                centre=account.target,
            ),
        )


@dataclass(frozen=True)
class GreekLimit(Rule, stacks=True, blanks=("greek",), own=("greek",)):
    """lower ≤ Σ greek·quantity / NAV ≤ upper: delta, gamma or vega of all positions; lower = upper is a target.

    `greek`: what one unit of each asset adds, in cash: for the delta multiplier·delta·price of the underlying (its
    price for the coin or the perpetual itself), for the gamma what a move of 1 % adds to that, for the vega what a
    volatility point adds. Blank, or the settlement cash: 0. Limits are fractions of the pre-trade NAV.
    """

    greek: Numbers
    upper: float | None = None
    lower: float | None = None
    assets: Sequence[str] | None = None
    account: str | None = None

    def __post_init__(self) -> None:
        if self.upper is None and self.lower is None:
            raise InputError("give upper=, lower= or both", column="GreekLimit")
        for limit, argument in ((self.upper, "upper"), (self.lower, "lower")):
            if limit is not None:
                check_number(limit, argument)
        if self.upper is not None and self.lower is not None and self.lower > self.upper:
            raise InputError(f"must be at most the upper limit {self.upper:g}", column="lower", value=self.lower)

    def pieces(self, account: Account) -> Sequence[Piece]:
        greek = self.numbers(account, "greek", cash=0.0, missing=0.0)
        check_range(greek, account, "greek", at_least=-LARGEST, of=self.account)
        slope = np.where(counted(account, self.assets, self.account), greek / account.price, 0.0)
        label = labelled(self.greek if isinstance(self.greek, str) else "greek", self.account)
        limits = ((self.upper, False), (self.lower, True))
        return [_limited(label, slope, limit, at_least) for limit, at_least in limits if limit is not None]

    def label_columns(self) -> tuple[str, ...]:
        return of_account(self.account)
