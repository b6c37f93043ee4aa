"""The rules a rebalance can be given, each as data (see `equipoise.constraints.pieces`)."""

from equipoise.constraints.errors import InputError
from equipoise.constraints.pieces import Bound, Cone, Count, Envelope, Opaque, Parts, Piece, Row, Semicontinuous, Step
from equipoise.constraints.rules.bands import DriftBand
from equipoise.constraints.rules.bounds import (
    BuyOnly,
    LongOnly,
    NoTrade,
    PoolCaps,
    Reserve,
    SellOnly,
    ShortOnly,
    TradeLimit,
    WeightBounds,
)
from equipoise.constraints.rules.cash import CashBand, CashFloor, SettledCash
from equipoise.constraints.rules.collateral import BorrowLimit, CollateralRatio, HealthFactor, LoanToValue
from equipoise.constraints.rules.custom import Custom, Trade
from equipoise.constraints.rules.exposure import FactorLimit, GreekLimit, GroupLimit, Leverage, TrackingErrorLimit
from equipoise.constraints.rules.margin import InitialMargin, MaintenanceMargin
from equipoise.constraints.rules.rule import Account, Rule
from equipoise.constraints.rules.stress import AfterMove, AfterScenarios, AfterShock, CVaR
from equipoise.constraints.rules.trading import LotSize, MinimumPosition, NameLimit, OrderLimit, Turnover

__all__ = [
    "Account",
    "AfterMove",
    "AfterScenarios",
    "AfterShock",
    "BorrowLimit",
    "Bound",
    "BuyOnly",
    "CVaR",
    "CashBand",
    "CashFloor",
    "CollateralRatio",
    "Cone",
    "Count",
    "Custom",
    "DriftBand",
    "Envelope",
    "FactorLimit",
    "GreekLimit",
    "GroupLimit",
    "HealthFactor",
    "InitialMargin",
    "InputError",
    "Leverage",
    "LoanToValue",
    "LongOnly",
    "LotSize",
    "MaintenanceMargin",
    "MinimumPosition",
    "NameLimit",
    "NoTrade",
    "Opaque",
    "OrderLimit",
    "Parts",
    "Piece",
    "PoolCaps",
    "Reserve",
    "Row",
    "Rule",
    "SellOnly",
    "Semicontinuous",
    "SettledCash",
    "ShortOnly",
    "Step",
    "TrackingErrorLimit",
    "Trade",
    "TradeLimit",
    "Turnover",
    "WeightBounds",
]
