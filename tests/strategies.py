"""The generator of valid problems that all property tests share.

`instance(rng)` makes one random rebalance from a numpy generator, `instances()` is the same as a hypothesis
strategy (it shrinks the structure: fewer assets, no costs, no rules), and `many(count)` is for loops in bulk.
What is not fixed by an argument is drawn.

Every instance has a feasible point, because it is planted: some trades from the holdings towards the target,
small enough for the cash to pay for them and stay positive, are chosen first (`planted` is where they lead,
`planted_cost` what they cost), and then each rule's limit is set so that this point keeps it with a margin of
`slack`. The figures are computed here from the table's columns, not by the library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from equipoise.constraints import (
    AfterMove,
    AfterScenarios,
    AfterShock,
    BorrowLimit,
    BuyOnly,
    CashBand,
    CashFloor,
    CollateralRatio,
    Custom,
    CVaR,
    DriftBand,
    FactorLimit,
    GreekLimit,
    GroupLimit,
    HealthFactor,
    InitialMargin,
    Leverage,
    LoanToValue,
    LongOnly,
    LotSize,
    MaintenanceMargin,
    NoTrade,
    PoolCaps,
    Reserve,
    Rule,
    SellOnly,
    SettledCash,
    ShortOnly,
    TrackingErrorLimit,
    Trade,
    TradeLimit,
    Turnover,
    WeightBounds,
)
from equipoise.optimizer.portfolio.portfolio import Portfolio
from equipoise.optimizer.problem.costs import Cost, HoldingCost, ImpactCost, ProportionalCost, QuadraticCost
from equipoise.optimizer.problem.policy import Policy
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.risk.models import CovarianceRisk, FactorRisk, Risk

CASH = "USD"
RISKS = (None, "diagonal", "dense", "factor")
COSTS: dict[str, Cost] = {
    "proportional": ProportionalCost("fee"),
    "quadratic": QuadraticCost(0.1, "volume"),
    "impact": ImpactCost("volatility", "volume"),
    "holding": HoldingCost("holding_rate", "borrow_rate"),
}


@dataclass(frozen=True, eq=False)
class Instance:
    """A table, a policy, and a point (weights after trading, cash before costs) that keeps every rule."""

    table: pd.DataFrame
    policy: Policy
    planted: pd.Series
    planted_cost: float

    def portfolio(self) -> Portfolio:
        return Portfolio.from_table(self.table, CASH)

    def problem(self) -> Problem:
        return self.policy.problem(self.portfolio())

    def planted_weights(self) -> np.ndarray:
        """The planted point in the portfolio's order, which is that of the labels."""
        return self.planted.sort_index().to_numpy()


@dataclass(frozen=True, eq=False)
class Planted:
    """What a rule's maker may use: the table, Σ by label, and the figures of the planted point."""

    rng: np.random.Generator
    table: pd.DataFrame
    covariance: pd.DataFrame
    weights: pd.Series
    trades: pd.Series
    cost: float
    slack: float

    @property
    def most(self) -> float:
        """The factor by which an upper limit exceeds the planted figure; `1 / most` is for lower limits."""
        return 1.0 + self.slack

    @property
    def assets(self) -> list[str]:
        return [asset for asset in self.table.index if asset != CASH]

    @property
    def shorts(self) -> list[str]:
        return [asset for asset in self.table.index if self.table.quantity[asset] < 0]

    @property
    def away(self) -> pd.Series:
        return self.weights - self.table.target

    @property
    def cash_after(self) -> float:
        return float(self.weights[CASH]) - self.cost

    @property
    def covered(self) -> float:
        """Σ threshold·w⁺ / (Σ w⁻ + cost), which keeps a ratio rule however its row counts the costs."""
        debt = float(self.weights.clip(upper=0).abs().sum())
        collateral = float(self.table.liquidation_threshold @ self.weights.clip(lower=0))
        return collateral / (debt + self.cost) if debt else 2.0


def small_trades(limit: float, trade: Trade) -> Any:
    """A custom rule that can be pickled."""
    import cvxpy as cp

    return cp.norm(trade.trades, 2) <= limit


def _drift_band(p: Planted) -> Rule:
    width = {asset: abs(p.away[asset]) * p.most + 1e-3 for asset in p.assets}
    return DriftBand(absolute=width, inside=1.0)


def _group_band(p: Planted) -> Rule:
    width = p.away[p.assets].groupby(p.table.group[p.assets]).sum().abs() * p.most + 1e-3
    return DriftBand(absolute=width.to_dict(), by="group")


def _weight_bounds(p: Planted) -> Rule:
    room = 0.1 * p.slack
    return WeightBounds((p.weights[p.assets] - room).to_dict(), (p.weights[p.assets] + room).to_dict())


def _trade_limit(p: Planted) -> Rule:
    nav = float(p.table.quantity @ p.table.price)
    return TradeLimit(float((p.trades.abs() * nav / p.table.volume)[p.assets].max()) * p.most, "volume")


def _initial_margin(p: Planted) -> Rule:
    margin = float(p.table.initial_margin @ p.weights.abs())
    return InitialMargin("initial_margin", utilisation=margin / (1.0 - p.cost) * p.most)


def _group_limit(p: Planted) -> Rule:
    sums, room = p.weights[p.assets].groupby(p.table.group[p.assets]).sum(), 0.1 * p.slack
    return GroupLimit("group", upper=(sums + room).to_dict(), lower=(sums - room).to_dict())


def _factor_limit(p: Planted) -> Rule:
    exposure, room = float(p.table.beta @ p.away), 0.1 * p.slack
    return FactorLimit("beta", upper=exposure + room, lower=exposure - room, relative=True)


def _tracking_error(p: Planted) -> Rule:
    return TrackingErrorLimit((float(np.sqrt(p.away @ p.covariance @ p.away)) + 1e-3) * p.most)


def _loan_to_value(p: Planted) -> Rule:
    debt, held = -float(p.weights.clip(upper=0).sum()), float(p.weights.clip(lower=0).sum())
    return LoanToValue(min(1.0, (debt + p.cost) / (held - p.cost) * p.most + 1e-3))


def _borrow_limit(p: Planted) -> Rule:
    factor, value = p.table.liquidation_threshold, p.table.quantity * p.table.price
    owed = -float(value.clip(upper=0).sum())
    held = float(factor @ value.clip(lower=0)) / owed if owed else 2.0
    return BorrowLimit((min(1.0, p.most / min(p.covered, held)) * factor).to_dict(), factor.to_dict())


def _limited_ratio(p: Planted) -> Rule:
    """No kind above 99 % of all that counts, nor above its own planted value and a tenth."""
    worth = p.table.liquidation_threshold * p.weights.clip(lower=0)
    total = min(worth.sum() - p.cost, 100.0 * (worth.sum() - worth.max() - p.cost))
    ratio = total / (p.cost - float(p.weights.clip(upper=0).sum()) + 0.1) / p.most
    cap = float(worth.max() * 1.1 * (p.table.quantity @ p.table.price))
    if ratio < 0.9:  # less than the thresholds, which are at most 0.9
        return CollateralRatio(p.covered / p.most, "liquidation_threshold", cap=cap)
    return CollateralRatio(ratio, "liquidation_threshold", cap=cap, share=0.99)


def _maintenance_margin(p: Planted) -> Rule:
    """Two brackets an asset, the second at twice the rate from half of the planted notional on."""
    nav, size, rate = float(p.table.quantity @ p.table.price), p.weights.abs(), p.table.initial_margin
    floor = 0.5 * size + 1.0 / nav
    margin = float((rate * (size + (size - floor).clip(lower=0)))[p.assets].sum())
    brackets = {a: ((0.0, float(rate[a])), (float(floor[a] * nav), float(2 * rate[a]))) for a in p.assets}
    return MaintenanceMargin(brackets, utilisation=margin / (1.0 - p.cost) * p.most)


def _stressed(make: Callable[[Rule, float], Rule]) -> Callable[[Planted], Rule]:
    """A health factor that is kept after moves of a tenth; no moves where that would ask for less than a threshold."""

    def maker(p: Planted) -> Rule:
        ratio = p.covered / p.most
        size = 0.1 if 0.75 * ratio >= 0.9 else 0.0
        return make(HealthFactor((0.75 if size else 1.0) * ratio, "liquidation_threshold"), size)

    return maker


def _after_move(p: Planted) -> Rule:
    ratio = 0.8 * p.covered / p.most
    if ratio < 0.9:
        return AfterMove(HealthFactor(p.covered / p.most, "liquidation_threshold"), years=0.1, sigmas=0.0)
    x = p.weights * np.where(p.weights > 0, p.table.liquidation_threshold, ratio)
    left, spread = float(x.sum()) - p.cost * max(1.0, ratio), float(np.sqrt(x @ p.covariance @ x * 0.1))
    return AfterMove(HealthFactor(ratio, "liquidation_threshold"), years=0.1, sigmas=max(left, 0.0) / spread / p.most)


def _pool_caps(p: Planted) -> Rule:
    units = p.trades * float(p.table.quantity @ p.table.price) / p.table.price * p.most
    return PoolCaps((units.clip(lower=0) + 1e-6).to_dict(), ((-units).clip(lower=0) + 1e-6).to_dict())


def _reserve(p: Planted) -> Rule:
    held = np.minimum(p.weights * float(p.table.quantity @ p.table.price) / p.table.price, p.table.quantity)
    return Reserve((held[[a for a in p.assets if held[a] > 0]] / p.most).to_dict())


def _settled_cash(p: Planted) -> Rule:
    sold = float(-p.trades[p.assets].clip(upper=0).sum())
    return SettledCash(late=min(1.0, p.cash_after / p.most / max(sold, 1e-9)))


#: The makers of rules by name; each returns a rule that the planted point keeps.
RULES: dict[str, Callable[[Planted], Rule]] = {
    "drift_band": _drift_band,
    "group_band": _group_band,
    "long_only": lambda p: LongOnly(except_=p.shorts),
    "short_only": lambda p: ShortOnly(p.shorts),
    "weight_bounds": _weight_bounds,
    "no_trade": lambda p: NoTrade([a for a in p.assets if p.trades[a] == 0]),
    "buy_only": lambda p: BuyOnly([a for a in p.assets if p.trades[a] >= 0]),
    "sell_only": lambda p: SellOnly([a for a in p.assets if p.trades[a] <= 0]),
    "trade_limit": _trade_limit,
    "cash_floor": lambda p: CashFloor(p.cash_after / p.most),
    "cash_band": lambda p: CashBand(p.cash_after / p.most, float(p.weights[CASH]) * p.most),
    "health_factor": lambda p: HealthFactor(p.covered / p.most, "liquidation_threshold"),
    "loan_to_value": _loan_to_value,
    "borrow_limit": _borrow_limit,
    "limited_ratio": _limited_ratio,
    "maintenance_margin": _maintenance_margin,
    "after_shock": _stressed(lambda rule, size: AfterShock(rule, size, size)),
    "after_scenarios": _stressed(lambda rule, size: AfterScenarios(rule, {"fall": -size, "rise": size})),
    "cvar": _stressed(lambda rule, size: CVaR(rule, {f"{i}": size * (i / 5 - 1) for i in range(11)}, level=0.75)),
    "after_move": _after_move,
    "greek_limit": lambda p: GreekLimit("price", upper=float(p.weights[p.assets].sum()) + 0.1 * p.slack),
    "pool_caps": _pool_caps,
    "reserve": _reserve,
    "settled_cash": _settled_cash,
    "collateral_ratio": lambda p: CollateralRatio(p.covered / p.most, "liquidation_threshold"),
    "initial_margin": _initial_margin,
    "gross_leverage": lambda p: Leverage(gross=float(p.weights[p.assets].abs().sum()) * p.most),
    "net_leverage": lambda p: Leverage(net=float(p.weights[p.assets].sum()) + 0.1 * p.slack),
    "group_limit": _group_limit,
    "factor_limit": _factor_limit,
    "tracking_error": _tracking_error,
    "turnover": lambda p: Turnover(0.5 * float(p.trades[p.assets].abs().sum()) * p.most + 1e-4),
    "lot_size": lambda p: LotSize("lot", min_notional="min_notional"),
    "custom": lambda p: Custom(partial(small_trades, float(np.linalg.norm(p.trades)) * p.most + 1e-4)),
}
#: What the rules become, for solvers that do not take everything.
BOUNDS = ("drift_band", "long_only", "short_only", "weight_bounds", "no_trade", "buy_only", "sell_only")
BOUNDS += ("trade_limit", "cash_floor", "cash_band", "pool_caps", "reserve")
ROWS = ("group_band", "health_factor", "collateral_ratio", "initial_margin", "gross_leverage", "net_leverage")
ROWS += ("group_limit", "factor_limit", "turnover", "loan_to_value", "borrow_limit", "greek_limit", "settled_cash")
ROWS += ("after_shock", "after_scenarios")
ENVELOPES = ("maintenance_margin", "limited_ratio", "cvar", "after_move")
CONES = ("tracking_error",)
NEED_RISK = (*CONES, "after_move")


def instance(
    rng: np.random.Generator,
    *,
    assets: int | None = None,
    shorts: int | None = None,
    nav: float | None = None,
    risk: str | None = "any",
    costs: Sequence[str] | None = None,
    rules: Sequence[str] | None = None,
    among: Sequence[str] = tuple(RULES),
    slack: float | None = None,
) -> Instance:
    """One random rebalance.

    `assets` without the cash (2 to 12), `shorts` of them with negative quantity (at most a third), `nav`
    (100 to 1e9), `risk` one of RISKS, `costs` names of COSTS, `rules` names of RULES (or up to four drawn
    `among` these), `slack` the margin that the planted point has (1 % to 30 %).
    """
    n = int(rng.integers(2, 13)) if assets is None else assets
    shorts = int(rng.integers(0, n // 3 + 1)) if shorts is None else shorts
    nav = float(10.0 ** rng.uniform(2, 9)) if nav is None else nav
    risk = RISKS[rng.integers(len(RISKS))] if risk == "any" else risk
    costs = [name for name in COSTS if rng.random() < 0.5] if costs is None else costs
    slack = float(rng.uniform(0.01, 0.3)) if slack is None else slack
    if rules is None:
        rules = possible([str(name) for name in rng.permutation(list(among))[: rng.integers(0, 5)]], risk)

    table = random_table(rng, n, shorts, nav)
    model, covariance = random_risk(rng, list(table.index), risk)

    cash = table.index.get_loc(CASH)
    before = (table.quantity * table.price).to_numpy() / float(table.quantity @ table.price)
    trades = (table.target.to_numpy() - before) * rng.uniform(0.2, 1.0, n + 1) * (rng.random(n + 1) < 0.8)
    trades[cash] = 0.0
    if "no_trade" in rules:
        trades[0 if cash else 1] = 0.0
    while before[cash] - trades.sum() - (cost := _cost(table, trades, costs)) < 0.005:
        trades /= 2  # this ends: there is cash of at least 0.01 before trading
    trades[cash] = -trades.sum()
    weights, moves = (pd.Series(values, table.index) for values in (before + trades, trades))
    planted = Planted(rng, table, covariance, weights, moves, cost, slack)

    policy = Policy(
        risk=model,
        costs=tuple(COSTS[name] for name in costs),
        constraints=tuple(RULES[name](planted) for name in rules),
        aversion=float(rng.uniform(1, 20)),
        horizon=float(rng.uniform(0.1, 2)),
    )
    return Instance(table, policy, weights, cost)


def possible(rules: Sequence[str], risk: str | None) -> list[str]:
    """Without those that exclude each other, or that need a risk model where there is none."""
    left_out = {"cash_band"} if "cash_floor" in rules else set()
    return [name for name in rules if name not in left_out and (risk is not None or name not in NEED_RISK)]


def random_table(rng: np.random.Generator, n: int, shorts: int, nav: float) -> pd.DataFrame:
    """n assets and the cash, in random order, with all the columns that the rules and costs here use."""

    def weights() -> np.ndarray:
        """Random weights with 5 to 40 % of shorts and 1 to 20 % of cash in all, in steps of 1e-6."""
        size, cash = rng.dirichlet(np.full(n, 2.0)), rng.uniform(0.01, 0.2)
        short = rng.uniform(0.05, 0.4) if shorts else 0.0
        size[:shorts] *= -short / max(size[:shorts].sum(), 1e-300)
        size[shorts:] *= (1.0 + short - cash) / size[shorts:].sum()
        risky = np.round(size, 6)
        return np.append(risky, np.round(1.0 - risky.sum(), 6))

    def column(values: np.ndarray, cash: float = 0.0) -> np.ndarray:
        return np.append(values, cash)

    price = column(np.round(10.0 ** rng.uniform(-2, 4, n), 4), 1.0)
    held = weights()
    held[shorts:n][rng.random(n - shorts) < 0.1] = 0.0  # not held yet: there is more cash instead
    held[n] = 1.0 - held[:n].sum()
    table = pd.DataFrame(
        {
            "quantity": np.round(held * nav / price, 8),
            "price": price,
            "target": weights(),
            "fee": column(np.round(rng.uniform(1e-4, 5e-3, n), 6) * (rng.random(n) < 0.9)),
            "lot": column(rng.choice([0.0, 1.0, 0.01, 1e-5], n)),
            "min_notional": column(rng.choice([0.0, 1.0, 10.0], n)),
            "liquidation_threshold": column(np.round(rng.uniform(0.5, 0.9, n), 3), 0.8),
            "initial_margin": column(np.round(rng.uniform(0.05, 0.3, n), 3)),
            "volume": column(np.round(nav * 10.0 ** rng.uniform(-1, 2, n), 2), 1.0),
            "volatility": column(np.round(rng.uniform(0.005, 0.05, n), 4)),
            "holding_rate": column(np.round(rng.uniform(-0.02, 0.02, n), 4)),
            "borrow_rate": column(np.round(rng.uniform(0.02, 0.1, n), 4)),
            "beta": column(np.round(rng.normal(1.0, 0.5, n), 3)),
            "group": [*(f"group {g}" for g in rng.integers(0, 3, n)), None],
        },
        index=pd.Index([*(f"A{i:03d}" for i in range(n)), CASH], name="asset"),
    )
    return table.iloc[rng.permutation(n + 1)]


def random_risk(rng: np.random.Generator, assets: list[str], kind: str | None) -> tuple[Risk | None, pd.DataFrame]:
    """A risk model of this kind and its annual covariance by label (the identity if there is none)."""
    risky = [asset for asset in assets if asset != CASH]
    n, k = len(risky), min(3, len(risky))
    volatility, specific = rng.uniform(0.1, 0.8, n), rng.uniform(0.05, 0.5, n) ** 2
    L = rng.normal(size=(n if kind == "dense" else k, n)) * volatility
    matrix = {
        None: np.eye(n),
        "diagonal": np.diag(volatility**2),
        "dense": L.T @ L / n + 1e-4 * np.eye(n),
        "factor": L.T @ L + np.diag(specific),
    }[kind]
    covariance = pd.DataFrame((matrix + matrix.T) / 2, risky, risky)
    model: Risk | None = None
    if kind is not None:
        model = FactorRisk(L, specific, assets=risky) if kind == "factor" else CovarianceRisk(covariance)
    return model, covariance.reindex(index=assets, columns=assets, fill_value=0.0)


def many(count: int, seed: int = 0, **options: Any) -> Iterator[Instance]:
    """`count` instances, the same in every run; each has its own stream of random numbers."""
    for number in range(count):
        yield instance(np.random.default_rng([seed, number]), **options)


@st.composite
def instances(draw: st.DrawFn, *, among: Sequence[str] = tuple(RULES), **options: Any) -> Instance:
    """`instance` as a hypothesis strategy, with the same options; those not given are drawn (and shrink)."""
    n = options.get("assets") or draw(st.integers(2, 12))
    drawn = {
        "assets": n,
        "shorts": draw(st.integers(0, n // 3)),
        "nav": 10.0 ** draw(st.integers(2, 9)),
        "risk": draw(st.sampled_from(RISKS)),
        "costs": draw(st.lists(st.sampled_from(list(COSTS)), unique=True)),
    } | options
    if "rules" not in options:
        rules = draw(st.lists(st.sampled_from(among), unique=True, max_size=4))
        drawn["rules"] = possible(rules, drawn["risk"])
    return instance(np.random.default_rng(draw(st.integers(0, 2**32 - 1))), **drawn)


def _cost(table: pd.DataFrame, trades: np.ndarray, costs: Sequence[str]) -> float:
    """The trading cost in fractions of NAV, from the columns: see COSTS (holding costs are no part of it)."""
    size, nav = np.abs(trades), float(table.quantity @ table.price)
    fee, volatility, volume = (table[column].to_numpy() for column in ("fee", "volatility", "volume"))
    each = {
        "proportional": fee * size,
        "quadratic": 0.1 * size**2 * nav / volume,
        "impact": volatility * size**1.5 * np.sqrt(nav / volume),
    }
    return float(sum(each[name].sum() for name in costs if name in each))
