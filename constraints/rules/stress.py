"""Ratio rules that still hold after prices, or the rules' own parameters, have moved.

Each takes a `rule` of holdings (HealthFactor, LoanToValue, CollateralRatio, InitialMargin, MaintenanceMargin, ...), in
which a move r of an asset's price turns wᵢ into wᵢ·(1 + rᵢ):

    AfterShock       each asset on its own, anywhere between −fall and +rise: the worst of the box     rows
    AfterScenarios   each of a list of moves, or of changes of the rule's arguments                    rows
    CVaR             the mean of the worst scenarios                                                   an envelope
    AfterMove        k standard deviations of the risk model                                           an envelope

Sources: robust counterparts of rows (Ben-Tal and Nemirovski 1999); CVaR (Rockafellar and Uryasev 2000).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from equipoise.constraints.errors import InputError, NotStackable
from equipoise.constraints.numbers import LARGEST, check_number
from equipoise.constraints.pieces import Array, Bound, Envelope, Piece, Row
from equipoise.constraints.rules.accounts import sides
from equipoise.constraints.rules.rule import Account, Numbers, Rule, check_range
from equipoise.constraints.rules.terms import Spread, Tail

#: An argument of a rule, or one number for each asset.
Argument = float | str | Mapping[str, float]


@dataclass(frozen=True)
class _Stressed(Rule):
    """What the rules here share."""

    rule: Rule

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Rule):
            raise InputError("must be a rule, such as HealthFactor(1.1, threshold)", column="rule", value=self.rule)

    @property
    def title(self) -> str:
        return self.name or f"{type(self).__name__}({self.rule.title})"

    def label_columns(self) -> tuple[str, ...]:
        return self.rule.label_columns()

    def _inner(self, account: Account, rule: Rule | None = None) -> tuple[list[Row | Envelope], list[Bound]]:
        """The rule's own rows and envelopes, and its bounds, which no price moves."""
        rule = rule or self.rule
        if len(account.shape) > 1 and not rule.stacks:
            raise NotStackable
        pieces = rule.pieces(account)
        ratios = [piece for piece in pieces if isinstance(piece, Row | Envelope)]
        bounds = [piece for piece in pieces if isinstance(piece, Bound)]
        if len(ratios) + len(bounds) < len(pieces) or any(piece.of_trades for piece in ratios):
            raise InputError(f"{rule.title} is no rule on what is held, so that no price moves it", column="rule")
        if not ratios:
            raise InputError(f"{rule.title} has no ratio that prices move", column="rule")
        return ratios, bounds

    def _rows(self, account: Account) -> tuple[list[Row], list[Bound]]:
        """The same, for those that take rows alone."""
        ratios, bounds = self._inner(account)
        rows = [piece for piece in ratios if isinstance(piece, Row)]
        if len(rows) < len(ratios):
            text = "has tiers or concentration limits; stress it by AfterShock or AfterScenarios"
            raise InputError(f"{self.rule.title} {text}", column="rule")
        return rows, bounds


def _moves(account: Account, given: Numbers, argument: str) -> Array:
    """1 + the move of each asset; those that are not named, and the cash unless it is, do not move."""
    cash = None if isinstance(given, Mapping) else 0.0
    move = account.numbers(given, argument, cash=cash, missing=0.0)
    check_range(move, account, argument, at_least=-1.0)
    return 1.0 + move


@dataclass(frozen=True)
class AfterShock(_Stressed, stacks=True, blanks=("fall", "rise"), own=("fall", "rise")):
    """The rule holds wherever each price goes between −fall and +rise, each on its own: fractions of the price.

    So collateral falls while debts rise, each by its own number (blank, and the cash: 0). The worst case of a box is
    one row. An asset that is both collateral and debt, in two rows, is not netted: see AfterScenarios and AfterMove.
    """

    fall: Numbers = 0.0
    rise: Numbers = 0.0

    def pieces(self, account: Account) -> Sequence[Piece]:
        ends = []
        for given, argument, most in ((self.fall, "fall", 1.0), (self.rise, "rise", LARGEST)):
            move = self.numbers(account, argument, cash=None if isinstance(given, Mapping) else 0.0, missing=0.0)
            check_range(move, account, argument, at_least=0.0, at_most=most)
            ends.append(1.0 + (move if argument == "rise" else -move))
        ratios, bounds = self._inner(account)
        return [*(piece.shocked(ends[0], ends[1], "after the shock") for piece in ratios), *bounds]


@dataclass(frozen=True)
class AfterScenarios(_Stressed, stacks=True, own=("moves",)):
    """The rule holds after each scenario by itself.

    `moves`: for each scenario's name the move of each asset (a mapping, a column, or one number for all but the cash;
    −0.3 is a fall by 30 %). `changes`: for each scenario's name arguments of the rule that are then others, such as
    `{"threshold": "lower_threshold"}` (collateral factor tuning) or `{"emode": ""}` (the end of an e-mode). A name in
    both is one scenario with both.
    """

    moves: Mapping[str, Numbers] | None = None
    changes: Mapping[str, Mapping[str, Argument]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for given, argument in ((self.moves, "moves"), (self.changes, "changes")):
            if given is not None and not isinstance(given, Mapping):
                raise InputError("must be a mapping by the scenarios' names", column=argument, value=given)
        if not self.moves and not self.changes:
            raise InputError("give moves=, changes= or both", column="AfterScenarios")
        for name in self.changes or {}:
            self._changed(name)

    def _changed(self, scenario: str) -> Rule:
        """The rule as it is in this scenario."""
        change: Any = (self.changes or {}).get(scenario, {})
        try:
            return replace(self.rule, **change)
        except TypeError:
            text = f"scenario {scenario!r}: must give arguments of {type(self.rule).__name__}"
            raise InputError(text, column="changes", value=change) from None

    def pieces(self, account: Account) -> Sequence[Piece]:
        found: list[Piece] = list(self._inner(account)[1])
        still = np.ones(account.shape)
        for name in dict.fromkeys([*(self.moves or {}), *(self.changes or {})]):
            given = (self.moves or {}).get(name)
            price = still if given is None else _moves(account, given, f"moves of {name}")
            ratios, _ = self._inner(account, self._changed(name))
            found += [piece.shocked(price, price, f"after {name}") for piece in ratios]
        return found


@dataclass(frozen=True)
class CVaR(_Stressed, stacks=True, own=("moves",)):
    """The mean of the rule's excess over the worst (1 − level) of the scenarios is at most 0.

    The excess of Σ threshold·C ≥ h·D is h·D − Σ threshold·C, a fraction of NAV. `moves` as in AfterScenarios, all
    equally likely. Source: Rockafellar and Uryasev (2000), conditional value at risk.
    """

    moves: Mapping[str, Numbers]
    level: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.moves, Mapping) or not self.moves:
            raise InputError("must be a mapping by the scenarios' names", column="moves", value=self.moves)
        check_number(self.level, "level", at_least=0.0)
        if self.level >= 1:
            raise InputError("must be below 1", column="level", value=self.level)

    def pieces(self, account: Account) -> Sequence[Piece]:
        rows, bounds = self._rows(account)
        prices = [_moves(account, given, f"moves of {name}") for name, given in self.moves.items()]
        found: list[Piece] = list(bounds)
        for row in rows:
            each = [tuple(side * price for side in row.bent) for price in prices]
            long, short = (np.stack(side, axis=-2) for side in zip(*each, strict=True))
            offset = np.zeros(long.shape[:-1]) + np.asarray(row.upper)[..., None]
            tail = Tail(long, short, offset, 1.0 - self.level)
            shown = replace(row, weight=None, long=None, short=None, upper=0.0, limit=row.stated, liquidation=None)
            found.append(Envelope(replace(shown, label=f"{row.label} in the tail"), (tail,)))
        return found


@dataclass(frozen=True)
class AfterMove(_Stressed, stacks=True):
    """The rule holds after a move of k standard deviations of the risk model within `years`, all prices together:

        s·w + k·√years·√((s∘w)ᵀ Σ (s∘w)) ≤ upper,      s the rule's slopes: −threshold of collateral, −h of debts

    so that collateral and debt of the same price net. k is `sigmas`, or from the `probability` that the rule is then
    broken: Φ⁻¹(1 − p) for normal moves ("gaussian"), √((1 − p)/p) for moves of any distribution with this covariance
    ("cantelli"). Positions stay on the side where they are held, or wanted. Needs a risk model.
    Source: second-order cone of a chance constraint (Boyd and Vandenberghe 2004, section 4.4.2); Cantelli's inequality.
    """

    years: float
    probability: float | None = None
    sigmas: float | None = None
    distribution: Literal["gaussian", "cantelli"] = "gaussian"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.years, "years", above=0.0)
        if (self.probability is None) == (self.sigmas is None):
            raise InputError("give either probability= or sigmas=", column="probability", value=self.probability)
        if self.sigmas is not None:
            check_number(self.sigmas, "sigmas", at_least=0.0)
        if self.probability is not None:
            check_number(self.probability, "probability", above=0.0)
            if self.probability > 0.5:
                raise InputError("must be at most 0.5", column="probability", value=self.probability)
        if self.distribution not in ("gaussian", "cantelli"):
            raise InputError("must be 'gaussian' or 'cantelli'", column="distribution", value=self.distribution)

    @property
    def k(self) -> float:
        """The number of standard deviations."""
        if self.probability is None:
            return float(self.sigmas or 0.0)
        if self.distribution == "gaussian":
            return NormalDist().inv_cdf(1.0 - self.probability)
        return sqrt((1.0 - self.probability) / self.probability)

    def pieces(self, account: Account) -> Sequence[Piece]:
        rows, bounds = self._rows(account)
        factors, specific = account.risk_factors, account.risk_specific
        risky = (np.any(factors != 0, axis=-2) | (specific != 0)) & np.full(account.shape, True)
        found: list[Piece] = list(bounds)
        for row in rows:
            long, short = row.bent
            bent = risky & (long != -short)
            side, bound = sides(account, bent, self.title)
            slope = np.where(side > 0, long, -short)
            k = self.k * sqrt(self.years)
            spread = Spread(k * factors * slope[..., None, :], k * np.sqrt(specific) * np.abs(slope))
            shown = replace(row, label=f"{row.label} after {self.k:.3g} sigmas", limit=row.stated, liquidation=None)
            found += [Envelope(shown, (spread,)), bound]
        return found
