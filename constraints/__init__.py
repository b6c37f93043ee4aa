"""The rules a rebalance can be given, each as data (see `equipoise.constraints.base`)."""

from equipoise.constraints.bands import DriftBand
from equipoise.constraints.base import (
    Account,
    Bound,
    Cone,
    Count,
    Opaque,
    Parts,
    Piece,
    Row,
    Rule,
    Semicontinuous,
    Step,
)
from equipoise.constraints.bounds import (
    BuyOnly,
    LongOnly,
    NoTrade,
    SellOnly,
    ShortOnly,
    TradeLimit,
    WeightBounds,
)
from equipoise.constraints.cash import CashBand, CashFloor
from equipoise.constraints.collateral import CollateralRatio, HealthFactor, InitialMargin
from equipoise.constraints.custom import Custom, Trade
from equipoise.constraints.errors import InputError
from equipoise.constraints.exposure import FactorLimit, GroupLimit, Leverage, TrackingErrorLimit
from equipoise.constraints.trading import LotSize, MinimumPosition, NameLimit, OrderLimit, Turnover

__all__ = [
    "Account",
    "Bound",
    "BuyOnly",
    "CashBand",
    "CashFloor",
    "CollateralRatio",
    "Cone",
    "Count",
    "Custom",
    "DriftBand",
    "FactorLimit",
    "GroupLimit",
    "HealthFactor",
    "InitialMargin",
    "InputError",
    "Leverage",
    "LongOnly",
    "LotSize",
    "MinimumPosition",
    "NameLimit",
    "NoTrade",
    "Opaque",
    "OrderLimit",
    "Parts",
    "Piece",
    "Row",
    "Rule",
    "SellOnly",
    "Semicontinuous",
    "ShortOnly",
    "Step",
    "TrackingErrorLimit",
    "Trade",
    "TradeLimit",
    "Turnover",
    "WeightBounds",
]
