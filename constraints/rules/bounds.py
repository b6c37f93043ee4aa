"""Rules on single assets that say where a weight may be or which way it may be traded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import check_number
from equipoise.constraints.pieces import Bound, Piece
from equipoise.constraints.rules.rule import Account, Numbers, Rule, bounded, check_range, exempted, refuse, unbounded


@dataclass(frozen=True)
class LongOnly(Rule, stacks=True):
    """w ≥ 0 for every asset but those in `except_` (debts, shorts). The cash has a floor of its own."""

    except_: Sequence[str] = ()

    def pieces(self, account: Account) -> Sequence[Piece]:
        where = account.positions(None, "except_") & ~exempted(account, self.except_)
        return (bounded("no short position", where, 0.0),)


@dataclass(frozen=True)
class ShortOnly(Rule, stacks=True):
    """w ≤ 0 for these assets: a debt can be repaid, but not turned into a holding."""

    assets: Sequence[str]

    def pieces(self, account: Account) -> Sequence[Piece]:
        return (bounded("no long position", account.positions(self.assets, "assets"), -np.inf, 0.0),)


@dataclass(frozen=True)
class WeightBounds(Rule, stacks=True):
    """lower ≤ w ≤ upper, as fractions of the pre-trade NAV, for `assets` (default: all but the cash).

    Assets that a mapping leaves out have no limit; a column has a number for each of the assets.
    """

    lower: Numbers | None = None
    upper: Numbers | None = None
    assets: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.lower is None and self.upper is None:
            raise InputError("give lower=, upper= or both", column="WeightBounds")

    def pieces(self, account: Account) -> Sequence[Piece]:
        low, high = unbounded(account)
        where = account.positions(self.assets, "assets")
        if self.lower is not None:
            low = np.where(where, self.numbers(account, "lower", missing=-np.inf, where=where), low)
        if self.upper is not None:
            high = np.where(where, self.numbers(account, "upper", missing=np.inf, where=where), high)
        crossed = low > high
        if crossed.any():
            i = account.first(crossed)
            raise InputError(
                f"the lower bound {low[i]:g} is above the upper bound {high[i]:g}",
                asset=account.assets[i],
                column="WeightBounds",
            )
        return (Bound(label="weight", lower=low, upper=high),)


@dataclass(frozen=True)
class NoTrade(Rule, stacks=True):
    """w = w₀: these assets stay as they are (locked, frozen, restricted)."""

    assets: Sequence[str] | None = None

    def pieces(self, account: Account) -> Sequence[Piece]:
        return (
            bounded(
                "no trade", account.positions(self.assets, "assets"), account.before, account.before, of_trade=True
            ),
        )


@dataclass(frozen=True)
class BuyOnly(Rule, stacks=True):
    """w ≥ w₀: these assets (default: all but the cash) are not sold."""

    assets: Sequence[str] | None = None

    def pieces(self, account: Account) -> Sequence[Piece]:
        return (bounded("no sale", account.positions(self.assets, "assets"), account.before, np.inf, of_trade=True),)


@dataclass(frozen=True)
class SellOnly(Rule, stacks=True):
    """w ≤ w₀: these assets (default: all but the cash) are not bought."""

    assets: Sequence[str] | None = None

    def pieces(self, account: Account) -> Sequence[Piece]:
        return (
            bounded("no purchase", account.positions(self.assets, "assets"), -np.inf, account.before, of_trade=True),
        )


@dataclass(frozen=True)
class TradeLimit(Rule, stacks=True):
    """|z| ≤ participation · volume / NAV: an order takes at most this part of an asset's volume.

    `volume` is in cash for the time in which the order is worked (usually one day).
    """

    participation: float
    volume: Numbers
    assets: Sequence[str] | None = None

    def pieces(self, account: Account) -> Sequence[Piece]:
        check_number(self.participation, "participation", at_least=0.0)
        where = account.positions(self.assets, "assets")
        volume = self.numbers(account, "volume", cash=0.0, where=where)
        check_range(volume, account, "volume", at_least=0.0)
        most = self.participation * volume / account.nav
        low, high = account.before - most, account.before + most
        return (bounded("order size", account.positions(self.assets, "assets"), low, high, of_trade=True),)


@dataclass(frozen=True)
class PoolCaps(Rule, stacks=True, blanks=("supply", "borrow")):
    """w ≤ w₀⁺ + supply·price/NAV and w ≥ −w₀⁻ − borrow·price/NAV: what a lending pool still takes and lends.

    `supply`, `borrow`: the room under the pool's caps in units of the asset, cap − what all have supplied or borrowed
    (0: full; blank: no cap). What is held or owed already may stay. Source: Aave v3, Compound III, supply and borrow
    caps.
    """

    supply: Numbers | None = None
    borrow: Numbers | None = None
    assets: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.supply is None and self.borrow is None:
            raise InputError("give supply=, borrow= or both", column="PoolCaps")

    def pieces(self, account: Account) -> Sequence[Piece]:
        edges = {}
        for given, argument in ((self.supply, "supply"), (self.borrow, "borrow")):
            room = np.full(account.shape, np.inf)
            if given is not None:
                room = self.numbers(account, argument, cash=np.inf, missing=np.inf)
            check_range(room, account, argument, at_least=0.0, at_most=np.inf)
            held = np.maximum(account.before if argument == "supply" else -account.before, 0.0)
            edges[argument] = held + room * account.price / account.nav
        return (
            bounded("room in the pool", account.positions(self.assets, "assets"), -edges["borrow"], edges["supply"]),
        )


@dataclass(frozen=True)
class Reserve(Rule, stacks=True, blanks=("units",)):
    """w ≥ min(w₀, units·price/NAV): a reserve or insurance buffer that may not be spent; what is missing is not bought.

    `units` of each asset, the settlement cash included if it is named (blank: none). The cash counts after costs.
    Where less is held than that, nothing of it is spent; the plan's message says what is missing, and its check shows
    the reserve that was asked for as the limit. (`CashFloor(money=)` is the floor that sells to be kept.)
    """

    units: Numbers

    def pieces(self, account: Account) -> Sequence[Piece]:
        units = self.numbers(account, "units", missing=-np.inf)
        check_range(units, account, "units", at_least=-np.inf)
        kept = np.isfinite(units)
        refuse(kept & (units < 0), units, account, "units", "must be at least 0")
        asked = np.where(kept, units, 0.0) * account.price / account.nav
        missing = np.where(kept, np.maximum(asked - account.before, 0.0), 0.0)
        return (bounded("reserve", kept, np.minimum(account.before, asked), relaxed=missing),)
