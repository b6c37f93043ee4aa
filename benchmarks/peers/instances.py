"""The problems: seeded, realistic, and the same for every peer.

    minimise    (aversion/2)·(w − b)ᵀΣ(w − b) + Σ costᵢ·|wᵢ − w₀ᵢ| + (penalty/2)·|w − w₀|² − gainᵀw
    subject to  Σ w = 1,   lower ≤ w ≤ upper,   rows,        Σ = FᵀF + diag(d²)

Weights are fractions of the NAV before trading, risk and costs are annual. The settlement cash, where there is one,
is the last asset: no risk, no cost. The costs are not taken out of it here (most peers cannot say that), so that
Σ w = 1 holds before them; `bands` keeps the cash above what they come to.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

Array = np.ndarray[Any, np.dtype[np.float64]]

AVERSION, HORIZON, FEE = 10.0, 0.5, 0.001  # 10 basis points of what is traded, worth paying within half a year
SIZES = {10: 3, 30: 3, 50: 5, 100: 5, 200: 10, 500: 15, 1000: 25, 5000: 50}  # assets: factors
DATA = Path(__file__).parents[2] / "examples" / "data"


@dataclass(frozen=True, eq=False)
class Rows:
    """weight·w + long·w⁺ + short·w⁻ + buy·z⁺ + sell·z⁻ ≤ upper; coefficients (m, n), upper (m,)."""

    names: tuple[str, ...]
    weight: Array
    long: Array
    short: Array
    buy: Array
    sell: Array
    upper: Array

    def of(self, w: Array, before: Array) -> Array:
        """The left sides."""
        z = w - before
        parts = (self.weight, w), (self.long, w.clip(0)), (self.short, (-w).clip(0))
        trades = (self.buy, z.clip(0)), (self.sell, (-z).clip(0))
        return np.asarray(sum(coefficients @ x for coefficients, x in (*parts, *trades)))


@dataclass(frozen=True, eq=False)
class Instance:
    """One portfolio; what is shared by a family (F, d², the rows' coefficients) is the same object in all of them."""

    factors: Array
    specific: Array
    target: Array
    before: Array
    lower: Array
    upper: Array
    cost: Array
    aversion: float = AVERSION
    cash: bool = True
    rows: Rows | None = None
    penalty: float = 0.0
    gain: Array | None = None

    @property
    def n(self) -> int:
        return len(self.target)

    def objective(self, w: Array) -> float:
        away, trade = w - self.target, w - self.before
        exposure = self.factors @ away
        risk = float(exposure @ exposure + self.specific @ away**2)
        value = (
            0.5 * self.aversion * risk + float(self.cost @ np.abs(trade)) + 0.5 * self.penalty * float(trade @ trade)
        )
        return value - (float(self.gain @ w) if self.gain is not None else 0.0)

    def violation(self, w: Array) -> float:
        """By how much the worst rule is broken, in fractions of NAV."""
        excess = [0.0, abs(float(np.sum(w)) - 1.0), float(np.max(self.lower - w)), float(np.max(w - self.upper))]
        if self.rows is not None:
            excess.append(float(np.max(self.rows.of(w, self.before) - self.rows.upper)))
        return max(excess)


@dataclass(frozen=True, eq=False)
class Family:
    """Instances of one structure. `judged`: the first so many are solved by every peer, and their quality measured;
    peers with a batch call solve all of them. `dates` > 1: a walk, date by date, the same accounts on every date."""

    name: str
    title: str
    instances: list[Instance]
    judged: int
    dates: int = 1
    facts: dict[str, float] = field(default_factory=dict)

    @property
    def accounts(self) -> int:
        return len(self.instances) // self.dates

    @cached_property
    def by_date(self) -> list[list[Instance]]:
        return [self.instances[t * self.accounts : (t + 1) * self.accounts] for t in range(self.dates)]


def model(n: int, k: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """F (k, n), d² (n,) and the volatilities: a market that everything loads on, and k − 1 lesser factors."""
    volatility = np.clip(np.exp(rng.normal(np.log(0.28), 0.35, n)), 0.15, 0.60)
    systematic = rng.uniform(0.25, 0.65, n)
    loadings = np.vstack([rng.uniform(0.7, 1.3, n), rng.normal(0.0, 1.0 / np.sqrt(k), (k - 1, n))])
    loadings /= np.linalg.norm(loadings, axis=0)
    return loadings * volatility * np.sqrt(systematic), volatility**2 * (1.0 - systematic), volatility


def with_cash(factors: Array, specific: Array) -> tuple[Array, Array]:
    return np.pad(factors, ((0, 0), (0, 1))), np.append(specific, 0.0)


def drifts(volatility: Array, count: int, rng: np.random.Generator) -> Array:
    """How prices moved for each account (count, n): lognormal, half a year long, the larger part common to all."""
    common, own = rng.normal(size=len(volatility)), rng.normal(size=(count, len(volatility)))
    return np.asarray(np.exp(volatility * np.sqrt(0.5) * (0.8 * common + 0.6 * own)))


def bands(n: int, count: int, judged: int, seed: int = 1) -> Family:
    """n assets and cash: half a year's drift, bands of a quarter of the target; a third of the accounts got money."""
    rng = np.random.default_rng([seed, n])
    F, specific, volatility = model(n, SIZES.get(n, max(3, n // 50)), rng)
    F, specific = with_cash(F, specific)
    cost = np.append(np.full(n, FEE / HORIZON), 0.0)
    made = []
    for moves in drifts(volatility, count, rng):
        target = np.append(0.98 * rng.dirichlet(np.full(n, 3.0)), 0.02)
        grown = target * np.append(moves, 1.0)
        if rng.random() < 1 / 3:
            grown[-1] += rng.uniform(0.03, 0.08)
        half = np.maximum(0.25 * target, 0.1 / n)
        lower, upper = np.maximum(target - half, 0.0), target + half
        lower[-1], upper[-1] = 0.0, 0.03
        made.append(Instance(F, specific, target, grown / grown.sum(), lower, upper, cost))
    return Family(f"bands {n}", f"bands: n = {n} and cash, k = {len(F)}", made, judged)


def with_rows(n: int, count: int, judged: int, seed: int = 1) -> Family:
    """Long and short positions and eight rows: turnover, gross leverage, collateral, three groups, two exposures.

    Every limit (and that on the cash) lies a fifth of the way from the holdings, brought into their bands, to the
    target, that of turnover two fifths: that point keeps all rules, and the optimum without them would go further.
    """
    rng = np.random.default_rng([seed, n, 8])
    F, specific, volatility = model(n, SIZES.get(n, max(3, n // 50)), rng)
    side = np.where(rng.random(n) < 0.2, -1.0, 1.0)
    group = rng.integers(0, 3, n)
    threshold = np.append(rng.uniform(0.5, 0.85, n), 0.0)
    F, specific = with_cash(F, specific)
    cost = np.append(np.full(n, FEE / HORIZON), 0.0)
    ones = np.append(np.ones(n), 0.0)
    linear = np.array([*(np.append(group == g, 0.0) for g in range(3)), F[0] / F[0].max(), F[1] / np.abs(F[1]).max()])
    weight, long, short, trade = (np.zeros((3 + len(linear), n + 1)) for _ in range(4))
    trade[0], long[1], short[1], long[2], short[2] = 0.5 * ones, ones, ones, -threshold, 1.5 * ones
    names = ("turnover", "leverage", "collateral", *(f"group {g}" for g in range(3)), "beta", "style")
    drawn = []
    for moves in drifts(volatility, count, rng):
        target = np.append(side * rng.dirichlet(np.full(n, 3.0)) * 1.5, 0.0)
        target[-1] = 1.0 - target.sum()
        held = target * np.append(np.where(side > 0, 0.93, 0.8) * moves, 1.0)
        held[-1] = 1.0 - held[:-1].sum()
        half = np.maximum(0.5 * np.abs(target), 1.0 / n)
        lower, upper = target - half, target + half
        lower[-1], upper[-1] = -1.0, 2.0
        near = np.clip(held, lower, upper)
        near[-1] = 1.0 - near[:-1].sum()
        drawn.append((target, held, lower, upper, near))
    # On which side a group or an exposure is limited: where most targets are, seen from the holdings.
    signs = np.sign(linear @ np.mean([target - near for target, _, _, _, near in drawn], axis=0))
    weight[3:] = signs[:, None] * linear
    made = []
    for target, held, lower, upper, near in drawn:
        rows = Rows(names, weight, long, short, trade, trade, np.zeros(len(weight)))
        kept = near + 0.2 * (target - near)
        upper[-1] = max(kept[-1], target[-1])
        limits = rows.of(kept, held)
        limits[0] = rows.of(near + 0.4 * (target - near), held)[0]
        rows = replace(rows, upper=limits)
        made.append(Instance(F, specific, target, held, lower, upper, cost, 10 * AVERSION, rows=rows))
    return Family(f"rows {n}", f"8 rows: n = {n} and cash, k = {len(F)}, longs and shorts", made, judged)


def equity(count: int, judged: int) -> Family:
    """28 stocks of 2008-10-10 (examples/data): the covariance of their returns, real spreads, 5/25 bands."""
    table = pd.read_csv(DATA / "equity.csv", index_col="asset")
    returns = pd.read_csv(DATA / "equity_returns.csv", index_col="date")
    held = pd.read_csv(DATA / "accounts.csv", dtype={"portfolio_id": str}).pivot(
        index="portfolio_id", columns="asset", values="quantity"
    )[[*returns.columns, "USD"]]
    table = table.loc[held.columns]
    weight = 0.5 ** (np.arange(len(returns))[::-1] / 63)  # half as much for every 63 days of age
    covariance = 252 * np.cov(returns.to_numpy().T, aweights=weight)
    # Σ = FᵀF + diag(d²) exactly: the least eigenvalue of the correlations goes to the diagonal.
    volatility = np.sqrt(np.diag(covariance))
    spectrum, vectors = np.linalg.eigh(covariance / np.outer(volatility, volatility))
    F = (vectors * np.sqrt(spectrum - spectrum[0])).T[1:] * volatility
    F, specific = with_cash(F, spectrum[0] * volatility**2)
    target = table["target"].to_numpy(float)
    half = np.minimum(0.05, 0.25 * target)
    lower, upper = np.maximum(target - half, 0.0), target + half
    lower[-1], upper[-1] = 0.0, 0.05
    cost = np.append(table["half_spread"].to_numpy(float)[:-1] / HORIZON, 0.0)
    made = []
    for quantities in held.to_numpy(float)[:count]:
        value = quantities * table["price"].to_numpy(float)
        made.append(Instance(F, specific, target, value / value.sum(), lower, upper, cost))
    return Family("equity", f"real data: 28 stocks and cash, sample covariance (k = {len(F)})", made, judged)


def walk(accounts: int, dates: int, judged: int) -> Family:
    """The workload that ledge publishes (benchmarks/results/2026-07-batch), its numbers; `before` is filled in from
    one chain of reference answers, so that every peer has the same problem on every date."""
    n, k = 200, 15
    asset, account, date = np.arange(n), np.arange(accounts)[:, None], np.arange(dates)[:, None, None]
    exposures = (0.3 * np.sin((np.arange(n * k) + 1) * 12.9898)).reshape(n, k)
    F = (exposures * np.sqrt(0.05 + 0.01 * np.arange(k))).T.copy()
    specific = 0.08 + 0.04 * ((asset * 7) % 13) / 13.0
    gain = 0.05 + 0.03 * np.cos(asset * 0.7 + account * 0.31) + 0.01 * np.sin((asset + 5 * date) * 0.17)
    zero, upper, cost, even = np.zeros(n), np.full(n, 10.0 / n), np.full(n, 0.001), np.full(n, 1.0 / n)
    made = [
        Instance(F, specific, zero, even, zero, upper, cost, 6.0, cash=False, penalty=0.5, gain=gain[t, a])
        for t in range(dates)
        for a in range(accounts)
    ]
    return Family("walk", f"a walk: {accounts} accounts x {dates} dates, n = {n}, k = {k}", made, judged, dates)
