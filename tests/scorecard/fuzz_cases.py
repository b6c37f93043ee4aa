"""Random valid portfolios for the fuzzed figures: a table, a policy of every kind of rule, and a judge for each rule.

Limits are set so that a planted point (part of the way to the targets) keeps them; money and units grow with the NAV.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from equipoise import Rebalancer
from equipoise import constraints as rules
from equipoise import optimizer as costs_of
from scorecard.fuzz_books import (
    ROUNDED,
    Books,
    Costs,
    Excess,
    Judge,
    Kept,
    counted,
    exact,
    long,
    moved,
    ratio,
    scenarios,
    shocked,
    short,
    stays,
    total,
)

CASH = "USD"


@dataclass(eq=False)
class Plant:
    """What rules are drawn from: the table, the planted weights and trades (cash before costs), a margin."""

    rng: np.random.Generator
    table: pd.DataFrame
    covariance: pd.DataFrame | None
    weights: pd.Series
    books: Books
    scale: Fraction
    slack: float

    @property
    def assets(self) -> list[str]:
        return [a for a in self.books.assets if a != CASH]

    @property
    def wide(self) -> float:
        return 1.0 + self.slack

    def some(self, least: int = 1) -> list[str]:
        chosen = [a for a in self.assets if self.rng.random() < 0.4]
        return chosen if len(chosen) >= least else self.assets[:least]

    def money(self, x: float) -> float:
        """A round amount near x, of a NAV of a million, at this scale."""
        return float(Fraction(repr(float(f"{x:.6g}"))) * self.scale)

    def own(self, a: str) -> float:
        return float(self.weights[a])


Made: TypeAlias = tuple[Any, Judge]


def each(limit: Callable[[Books, str], Iterator[tuple[Fraction, bool]]], assets: list[str]) -> Judge:
    def judge(books: Books) -> Iterator[Kept]:
        for a in assets:
            for slack, sharp in limit(books, a):
                yield a, slack, sharp

    return judge


def rounded_up(x: float, digits: int = 6) -> float:
    return float(np.ceil(x * 10**digits) / 10**digits)


def long_only(p: Plant) -> Made:
    free = [a for a in p.assets if p.table.at[a, "quantity"] < 0 or p.own(a) < 0]
    others = [a for a in p.assets if a not in free]
    return rules.LongOnly(except_=free), each(lambda b, a: iter([(b.after[a], True)]), others)


def short_only(p: Plant) -> Made:
    owed = [a for a in p.assets if p.table.at[a, "quantity"] <= 0 and p.own(a) <= 0]
    return rules.ShortOnly(owed), each(lambda b, a: iter([(-b.after[a], True)]), owed)


def weight_bounds(p: Plant) -> Made:
    some = p.some()
    low = {a: -rounded_up(-p.own(a) + p.slack * 0.1) for a in some}
    high = {a: rounded_up(p.own(a) + p.slack * 0.1) for a in some}

    def limit(b: Books, a: str) -> Iterator[tuple[Fraction, bool]]:
        yield b.after[a] - exact(low[a]) * b.nav, not low[a]
        yield exact(high[a]) * b.nav - b.after[a], not high[a]

    return rules.WeightBounds(low, high, some), each(limit, some)


def pinned(p: Plant) -> Made:
    """Bounds of 0 on both sides, for what the planted point holds least of: others may not allow that it is sold."""
    some = [min(p.assets, key=lambda a: abs(p.own(a)))]
    zero = dict.fromkeys(some, 0.0)
    return rules.WeightBounds(zero, zero, some), each(lambda b, a: iter([(-abs(b.after[a]), True)]), some)


def drift_band(p: Plant) -> Made:
    some, kind = p.some(), str(p.rng.choice(["lesser", "greater"]))
    away = {a: abs(p.own(a) - float(p.table.at[a, "target"])) for a in p.assets}
    most = rounded_up(max(away.values()) * p.wide + 1e-4)
    relative = rounded_up(max(away[a] / max(abs(float(p.table.at[a, "target"])), 1e-3) for a in some) + 0.1)

    def limit(b: Books, a: str) -> Iterator[tuple[Fraction, bool]]:
        widths = (exact(most), exact(relative) * abs(b.target[a]))
        width = min(widths) if kind == "lesser" else max(widths)
        yield width * b.nav - abs(b.after[a] - b.target[a] * b.nav), False

    return rules.DriftBand(absolute=most, relative=relative, combine=kind, assets=some), each(limit, some)  # type: ignore[arg-type]


def groups(b: Books) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for a, label in b.table["group"].items():
        if isinstance(label, str):
            found.setdefault(label, []).append(str(a))
    return found


def of_group(b: Books, members: list[str], held: dict[str, Fraction]) -> Fraction:
    return sum((held[a] for a in members), Fraction(0))


def group_band(p: Plant) -> Made:
    def away(label: str) -> float:
        members = groups(p.books)[label]
        return abs(sum(p.own(a) for a in members) - float(p.table.loc[members, "target"].sum()))

    width = {label: rounded_up(away(label) * p.wide + 1e-4) for label in groups(p.books)}

    def judge(b: Books) -> Iterator[Kept]:
        for label, members in groups(b).items():
            target = sum((b.target[a] for a in members), Fraction(0)) * b.nav
            for held in (b.after, b.early):
                yield label, exact(width[label]) * b.nav - abs(of_group(b, members, held) - target), False

    return rules.DriftBand(absolute=width, by="group"), judge


def group_limit(p: Plant) -> Made:
    upper = {k: rounded_up(sum(p.own(a) for a in m) + 0.2 * p.slack) for k, m in groups(p.books).items()}
    lower = {k: -rounded_up(0.2 * p.slack - sum(p.own(a) for a in m)) for k, m in groups(p.books).items()}

    def judge(b: Books) -> Iterator[Kept]:
        for label, members in groups(b).items():
            for held in (b.after, b.early):
                yield label, exact(upper[label]) * b.nav - of_group(b, members, held), False
                yield label, of_group(b, members, held) - exact(lower[label]) * b.nav, False

    return rules.GroupLimit("group", upper, lower), judge


def no_trade(p: Plant) -> Made:
    still = [a for a in p.assets if not p.books.units[a]]
    return rules.NoTrade(still), each(lambda b, a: iter([(-abs(b.traded[a]), True)]), still)


def buy_only(p: Plant) -> Made:
    some = [a for a in p.assets if p.books.units[a] >= 0]
    return rules.BuyOnly(some), each(lambda b, a: iter([(b.traded[a], False)]), some)


def sell_only(p: Plant) -> Made:
    some = [a for a in p.assets if p.books.units[a] <= 0]
    return rules.SellOnly(some), each(lambda b, a: iter([(-b.traded[a], False)]), some)


def trade_limit(p: Plant) -> Made:
    part = rounded_up(max(float(abs(p.books.traded[a]) / p.books.cell("volume", a)) for a in p.assets) * p.wide + 1e-6)

    def limit(b: Books, a: str) -> Iterator[tuple[Fraction, bool]]:
        yield exact(part) * b.cell("volume", a) - abs(b.traded[a]), False

    return rules.TradeLimit(part, "volume"), each(limit, p.assets)


def pool_caps(p: Plant) -> Made:
    room = {
        name: {a: float(abs(p.books.units[a]) * exact(round(1 + p.slack, 3))) for a in p.assets}
        for name in ("supply", "borrow")
    }

    def limit(b: Books, a: str) -> Iterator[tuple[Fraction, bool]]:
        yield long(b.before[a]) + exact(room["supply"][a]) * b.price[a] - b.after[a], False
        yield b.after[a] + short(b.before[a]) + exact(room["borrow"][a]) * b.price[a], False

    return rules.PoolCaps(room["supply"], room["borrow"]), each(limit, p.assets)


def reserve(p: Plant) -> Made:
    some = [a for a in p.some() if min(float(p.table.at[a, "quantity"]), p.own(a)) > 0]
    units = {a: float(exact(round(0.5, 2)) * min(p.books.early[a], p.books.before[a]) / p.books.price[a]) for a in some}

    def limit(b: Books, a: str) -> Iterator[tuple[Fraction, bool]]:
        yield b.after[a] - min(b.before[a], exact(units[a]) * b.price[a]), False

    return rules.Reserve(units), each(limit, some)


def cash_floor(p: Plant) -> Made:
    after = float(p.books.after[CASH] / p.books.nav) / p.wide
    weight, money = round(after, 4) / 2, p.money(after * 1e6 / 2)

    def judge(b: Books) -> Iterator[Kept]:
        yield "floor", b.after[CASH] - exact(weight) * b.nav, False
        yield "money", b.after[CASH] - exact(money), False

    return rules.CashFloor(weight, money), judge


def cash_band(p: Plant) -> Made:
    high = rounded_up(p.own(CASH) * p.wide)
    low = min(high - 0.001, round(float(p.books.after[CASH] / p.books.nav) / p.wide / 2, 6))

    def judge(b: Books) -> Iterator[Kept]:
        yield "floor", b.after[CASH] - exact(low) * b.nav, False
        yield "cap", exact(high) * b.nav - b.early[CASH], False

    return rules.CashBand(low, high), judge


def settled_cash(p: Plant) -> Made:
    by = "group" if p.rng.random() < 0.5 else None
    late = {a: float(p.rng.choice([0.0, 0.5, 1.0])) for a in p.assets}

    def available(b: Books) -> Fraction:
        left = b.after[CASH] - sum((exact(late[a]) * short(x) for a, x in b.traded.items()), Fraction(0))
        for members in groups(b).values() if by else ():
            flow = sum((short(b.traded[a]) * (1 - exact(late[a])) - long(b.traded[a]) for a in members), Fraction(0))
            left -= long(flow)
        return left

    waiting = p.money(max(0.0, float(available(p.books) / p.books.nav)) / p.wide * 1e6)

    def judge(b: Books) -> Iterator[Kept]:
        yield "settled", available(b) - exact(waiting), False

    return rules.SettledCash(waiting, late, by), judge


def planted_ratio(p: Plant, excess: Callable[[Fraction], Excess], low: float, high: float, *, rising: bool) -> float:
    """A number for which the planted point keeps a ratio, near the best that it keeps, by bisection."""

    def kept(x: float) -> bool:
        e = excess(exact(x))
        return max(total(p.books, e, held) for held in (p.books.after, p.books.early)) <= 0

    inside, outside = (low, high) if rising else (high, low)
    for _ in range(30):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if kept(middle) else (inside, middle)
    return float(f"{inside / p.wide if rising else inside * p.wide:.5g}")


def health(p: Plant) -> tuple[Any, Excess]:
    def of(h: Fraction) -> Excess:
        return lambda b, a, x: h * short(x) - b.cell("threshold", a) * long(x)

    h = max(0.92, planted_ratio(p, of, 0.9, 20.0, rising=True))
    return rules.HealthFactor(h, "threshold"), of(exact(h))


def emode(p: Plant) -> tuple[Any, Excess]:
    inside = dict.fromkeys(p.some(), 0.91)

    def of(h: Fraction) -> Excess:
        return lambda b, a, x: h * short(x) - (exact(0.91) if a in inside else b.cell("threshold", a)) * long(x)

    h = max(0.92, planted_ratio(p, of, 0.9, 20.0, rising=True))
    return rules.HealthFactor(h, "threshold", "one", {"one": inside}), of(exact(h))


def loan_to_value(p: Plant) -> tuple[Any, Excess]:
    def of(most: Fraction) -> Excess:
        return lambda b, a, x: short(x) - most * long(x)

    most = min(1.0, max(0.01, planted_ratio(p, of, 1e-4, 1.0, rising=False)))
    return rules.LoanToValue(most), of(exact(most))


def collateral(p: Plant) -> tuple[Any, Excess]:
    def of(h: Fraction) -> Excess:
        return lambda b, a, x: h * short(x) - b.cell("threshold", a) * long(x)

    h = max(0.92, planted_ratio(p, of, 0.9, 20.0, rising=True))
    return rules.CollateralRatio(h, "threshold"), of(exact(h))


def initial_margin(p: Plant) -> tuple[Any, Excess]:
    def of(use: Fraction) -> Excess:
        def excess(b: Books, a: str, x: Fraction) -> Fraction:
            rate = Fraction(0) if a == CASH else b.cell("margin", a)
            return rate * abs(x) - use * ((1 - b.cell("haircut", a)) * long(x) - short(x))

        return excess

    use = max(1e-3, planted_ratio(p, of, 1e-3, 5.0, rising=False))
    return rules.InitialMargin("margin", "haircut", use), of(exact(use))


def maintenance_margin(p: Plant) -> tuple[Any, Excess]:
    pairs = [(0.0, 0.02), (p.money(1e5), 0.05), (p.money(3e5), 0.2)]
    brackets = {a: pairs[: int(p.rng.integers(1, 4))] for a in p.some()}

    def of(use: Fraction) -> Excess:
        def excess(b: Books, a: str, x: Fraction) -> Fraction:
            margin, last = Fraction(0), Fraction(0)
            for floor, rate in brackets.get(a, []):  # each slice above a floor at what the rate rises there
                margin += (exact(rate) - last) * long(abs(x) - exact(floor))
                last = exact(rate)
            return margin - use * (long(x) - short(x))

        return excess

    use = max(1e-3, planted_ratio(p, of, 1e-3, 5.0, rising=False))
    return rules.MaintenanceMargin(brackets, utilisation=use), of(exact(use))


RATIOS = (health, emode, loan_to_value, collateral, initial_margin, maintenance_margin)


def stressable(p: Plant, *, tiers: bool = True) -> tuple[Any, Excess]:
    """A ratio with room for a shock: planted ones hold today, so that it is asked for less."""
    made = RATIOS[int(p.rng.integers(len(RATIOS) if tiers else len(RATIOS) - 1))](p)
    return made


def after_shock(p: Plant) -> Made:
    rule, excess = stressable(p)
    return rules.AfterShock(rule, "fall", "rise"), shocked(excess, "fall", "rise")


def drawn_moves(p: Plant, count: int) -> list[dict[str, float]]:
    return [{a: float(np.round(p.rng.normal(0, 0.01), 4)) for a in p.assets} for _ in range(count)]


def after_scenarios(p: Plant) -> Made:
    rule, excess = stressable(p)
    moves = drawn_moves(p, 3)
    named = {f"s{i}": move for i, move in enumerate(moves)}
    return rules.AfterScenarios(rule, named), scenarios(excess, moves)


def cvar(p: Plant) -> Made:
    rule, excess = stressable(p, tiers=False)
    moves, level = drawn_moves(p, 7), float(p.rng.choice([0.5, 0.7, 0.9]))
    named = {f"s{i}": move for i, move in enumerate(moves)}
    return rules.CVaR(rule, named, level), scenarios(excess, moves, 1 - exact(level))


def after_move(p: Plant) -> Made:
    rule, excess = stressable(p, tiers=False)
    assert p.covariance is not None
    years, sigmas = 0.002, float(p.rng.choice([0.5, 2.0]))
    return rules.AfterMove(rule, years, sigmas=sigmas), moved(excess, p.covariance, sigmas * years**0.5)


def one_ratio(p: Plant) -> Made:
    rule, excess = stressable(p)
    return rule, ratio(excess)


def borrow_limit(p: Plant) -> Made:
    def borrow(b: Books, a: str, x: Fraction) -> Fraction:
        return short(x) - b.cell("borrow", a) * long(x)

    def liquidation(b: Books, a: str, x: Fraction) -> Fraction:
        return short(x) - b.cell("threshold", a) * long(x)

    def judge(b: Books) -> Iterator[Kept]:
        over = total(b, borrow, b.before)
        yield from ratio(borrow, lambda _: long(over))(b)
        yield from ratio(liquidation)(b)
        for a in b.assets if over > 0 else ():
            yield f"{a} owes more", b.after[a] - min(b.before[a], Fraction(0)), False

    return rules.BorrowLimit("borrow", "threshold"), judge


def limited_collateral(p: Plant) -> Made:
    share, some = float(p.rng.choice([0.35, 0.6])), p.some()
    cap = {a: p.money(2e5) for a in some}

    def counts(b: Books, held: dict[str, Fraction]) -> Fraction:
        values = [
            min(b.cell("threshold", a) * long(x), exact(cap[a])) if a in cap else b.cell("threshold", a) * long(x)
            for a, x in held.items()
        ]
        return counted(values, exact(share))

    def owed(held: dict[str, Fraction]) -> Fraction:
        return sum((short(x) for x in held.values()), Fraction(0))

    now = float(counts(p.books, p.books.after) / max(owed(p.books.after), p.books.nav / 10**6))
    h = max(0.92, float(f"{min(now, 50.0) / p.wide:.4g}"))

    def judge(b: Books) -> Iterator[Kept]:
        yield from stays(b, [*b.units])
        for held in (b.after, b.early):
            yield "counted", counts(b, held) - exact(h) * owed(held), False

    return rules.CollateralRatio(h, "threshold", cap=cap, share=share), judge


def greek_limit(p: Plant) -> Made:
    most = rounded_up(float(sum(p.books.early[a] for a in p.assets) / p.books.nav) * 0.5 + 0.1 * p.slack)

    def judge(b: Books) -> Iterator[Kept]:
        yield "delta", exact(most) * b.nav - sum((b.cell("greek", a) * b.left[a] for a in b.left), Fraction(0)), False

    return rules.GreekLimit("greek", most), judge


def leverage(p: Plant) -> Made:
    gross = rounded_up(sum(abs(p.own(a)) for a in p.assets) * p.wide)
    net = rounded_up(sum(p.own(a) for a in p.assets) + 0.1 * p.slack)

    def judge(b: Books) -> Iterator[Kept]:
        yield "gross", exact(gross) * b.nav - sum((abs(b.after[a]) for a in b.left), Fraction(0)), False
        yield "net", exact(net) * b.nav - sum((b.after[a] for a in b.left), Fraction(0)), False

    return rules.Leverage(gross, net), judge


def factor_limit(p: Plant) -> Made:
    def beta(b: Books, held: dict[str, Fraction]) -> Fraction:
        return sum((b.cell("beta", a) * x for a, x in held.items()), Fraction(0))

    now = float(beta(p.books, p.books.early) / p.books.nav)
    low, high = -rounded_up(p.slack - now), rounded_up(now + p.slack)

    def judge(b: Books) -> Iterator[Kept]:
        for held in (b.after, b.early):
            yield "upper", exact(high) * b.nav - beta(b, held), False
            yield "lower", beta(b, held) - exact(low) * b.nav, False

    return rules.FactorLimit("beta", high, low), judge


def tracking_error(p: Plant) -> Made:
    assert p.covariance is not None
    matrix, names = p.covariance.to_numpy(), list(p.covariance.index)

    def error(b: Books) -> float:
        away = np.array([float(b.after[a] / b.nav - b.target[a]) for a in names])
        return float(np.sqrt(max(0.0, away @ matrix @ away)))

    limit = rounded_up(error(p.books) * p.wide + 1e-4)

    def judge(b: Books) -> Iterator[Kept]:
        yield "tracking error", (exact(limit) - exact(error(b)) + 100 * ROUNDED) * b.nav, False

    return rules.TrackingErrorLimit(limit), judge


def turnover(p: Plant) -> Made:
    kind = str(p.rng.choice(["one_way", "two_way", "buy", "sell"]))
    parts = {"one_way": (Fraction(1, 2),) * 2, "two_way": (Fraction(1),) * 2, "buy": (1, 0), "sell": (0, 1)}[kind]

    def size(b: Books) -> Fraction:
        return sum((parts[0] * long(x) + parts[1] * short(x) for x in b.traded.values()), Fraction(0))

    limit = rounded_up(float(size(p.books) / p.books.nav) * p.wide + 1e-4)

    def judge(b: Books) -> Iterator[Kept]:
        yield kind, exact(limit) * b.nav - size(b), False

    return rules.Turnover(limit, kind), judge  # type: ignore[arg-type]


def lot_size(p: Plant) -> Made:
    def judge(b: Books) -> Iterator[Kept]:
        for a, units in b.units.items():
            if units and b.left[a]:  # closing is exempt
                lot = b.cell("lot", a)
                yield f"{a} in whole lots", -Fraction(bool(lot and (units / lot).denominator > 1)) * b.nav, True
                yield f"{a} at least", abs(units) * b.price[a] - b.cell("least", a), True

    return rules.LotSize("lot", min_notional="least"), judge


def minimum_position(p: Plant) -> Made:
    some = p.some()
    weight = {a: rounded_up(min(0.02, max(abs(p.own(a)) / p.wide, 1e-3))) for a in some}

    def limit(b: Books, a: str) -> Iterator[tuple[Fraction, bool]]:
        yield (abs(b.after[a]) - exact(weight[a]) * b.nav if b.after[a] else Fraction(0)), True

    return rules.MinimumPosition(weight=weight, assets=some), each(limit, some)


def order_limit(p: Plant) -> Made:
    most = max(1, sum(1 for x in p.books.units.values() if x))

    def judge(b: Books) -> Iterator[Kept]:
        yield "orders", Fraction(most - sum(1 for x in b.units.values() if x)), True

    return rules.OrderLimit(most), judge


def name_limit(p: Plant) -> Made:
    most = max(1, sum(1 for x in p.books.left.values() if x))

    def judge(b: Books) -> Iterator[Kept]:
        yield "names", Fraction(most - sum(1 for x in b.left.values() if x)), True

    return rules.NameLimit(most), judge


def custom(p: Plant) -> Made:
    assets = p.some()
    most = rounded_up(sum(abs(float(p.books.traded[a] / p.books.nav)) for a in assets) * p.wide + 1e-4)

    def build(trade: Any) -> Any:
        import cvxpy as cp

        return sum(cp.abs(trade.trade(a)) for a in assets) <= most

    def judge(b: Books) -> Iterator[Kept]:
        yield "custom", (exact(most) + Fraction(1, 10**9)) * b.nav - sum(abs(b.traded[a]) for a in assets), False

    return rules.Custom(build), judge


CONVEX: tuple[Callable[[Plant], Made], ...] = (
    *(long_only, short_only, weight_bounds, pinned, drift_band, group_band, group_limit, no_trade, buy_only, sell_only),
    *(trade_limit, pool_caps, reserve, cash_floor, cash_band, settled_cash, one_ratio, borrow_limit, greek_limit),
    *(limited_collateral, after_shock, after_scenarios, cvar, after_move, leverage, factor_limit, tracking_error),
    *(turnover, custom),
)
DISCRETE = (lot_size, minimum_position, order_limit, name_limit)
_NEED_RISK = (after_move, tracking_error)
_OWN_CASH = (cash_floor, cash_band)


@dataclass(eq=False)
class Case:
    """One request with the judges of its rules, and the trades to the planted point, which keeps most of them.

    `whole`: whether orders are searched one by one.
    """

    table: pd.DataFrame
    rebalancer: Rebalancer
    costs: Costs
    judges: dict[str, Judge]
    planted: dict[str, Fraction]
    whole: bool
    said: str


def drawn_table(rng: np.random.Generator, n: int, scale: Fraction) -> pd.DataFrame:
    """n assets and the cash for a NAV of about a million times the scale; a few shorts."""
    owed = np.arange(n) < rng.integers(0, n // 3 + 1)

    def weights() -> np.ndarray:
        size, cash = rng.dirichlet(np.full(n, 2.0)), rng.uniform(0.01, 0.2)
        debt = rng.uniform(0.05, 0.4) if owed.any() else 0.0
        size[owed] *= -debt / max(size[owed].sum(), 1e-300)
        size[~owed] *= (1.0 + debt - cash) / size[~owed].sum()
        risky = np.round(size, 6)
        return np.append(risky, np.round(1.0 - risky.sum(), 6))

    price = np.append(np.round(10.0 ** rng.uniform(-1, 4, n), 4), 1.0)
    held = weights()
    held[:n] *= rng.random(n) > 0.1
    held[n] = 1.0 - held[:n].sum()
    quantity = np.round(held * 1e6 / price, 6)

    def scaled(values: np.ndarray) -> list[float]:
        return [float(Fraction(repr(float(x))) * scale) for x in values]

    def column(values: np.ndarray, cash: float = 0.0) -> np.ndarray:
        return np.append(values, cash)

    threshold = np.round(rng.uniform(0.5, 0.9, n), 3)
    lot = rng.choice([0.0, 1.0, 0.01, 5.0], n)
    return pd.DataFrame(
        {
            "quantity": scaled(quantity),
            "price": price,
            "target": weights(),
            "fee": column(np.round(rng.uniform(0, 5e-3, n), 6) * (rng.random(n) < 0.9)),
            "sale": column(np.round(rng.uniform(0, 5e-3, n), 6)),
            "volume": scaled(column(np.round(10.0 ** rng.uniform(5, 8, n), 2), 1.0)),
            "volatility": column(np.round(rng.uniform(0.005, 0.05, n), 4)),
            "square": column(np.full(n, 0.1)),
            "ticket": scaled(column(np.round(rng.uniform(0, 20, n), 2))),
            "minimum": scaled(column(np.round(rng.uniform(1, 20, n), 2))),
            "commission": column(np.round(rng.uniform(1e-4, 2e-3, n), 5)),
            "yield": column(np.round(rng.uniform(-0.02, 0.02, n), 4)),
            "rate": column(np.round(rng.uniform(0.02, 0.1, n), 4)),
            "lot": scaled(column(lot)),
            "least": scaled(column(rng.choice([0.0, 100.0, 1000.0], n))),
            "threshold": column(threshold, 0.8),
            "borrow": column(threshold - 0.1, 0.7),
            "margin": column(np.round(rng.uniform(0.05, 0.3, n), 3)),
            "haircut": column(np.round(rng.uniform(0.0, 0.2, n), 3)),
            "fall": column(np.round(rng.uniform(0.0, 0.02, n), 4)),
            "rise": column(np.round(rng.uniform(0.0, 0.02, n), 4)),
            "beta": column(np.round(rng.normal(1.0, 0.5, n), 3)),
            "greek": column(price[:n] * 0.5),
            "group": [*(f"g{i}" for i in rng.integers(0, 3, n)), None],
        },
        index=pd.Index([*(f"A{i:03d}" for i in range(n)), CASH], name="asset"),
    )


def drawn_risk(rng: np.random.Generator, names: list[str]) -> tuple[Any, pd.DataFrame | None]:
    """None, dense, low rank, factors or diagonal; with the covariance that the judge uses."""
    kind, n = str(rng.choice(["none", "dense", "low rank", "factor", "diagonal"])), len(names)
    if kind == "none":
        return None, None
    k = n if kind == "dense" else min(3, n)
    loadings = rng.normal(size=(k, n)) * rng.uniform(0.1, 0.8, n) / np.sqrt(k)
    specific = rng.uniform(0.05, 0.5, n) ** 2 * (kind in ("factor", "diagonal")) + 1e-4 * (kind == "dense")
    matrix = (loadings.T @ loadings) * (kind != "diagonal") + np.diag(specific)
    covariance = pd.DataFrame((matrix + matrix.T) / 2, names, names)
    if kind == "factor":
        return costs_of.FactorRisk(loadings, specific, assets=names), covariance
    return costs_of.CovarianceRisk(covariance), covariance


def drawn_costs(rng: np.random.Generator, fees: bool) -> tuple[list[Any], Costs]:
    made: list[Any] = []
    given: dict[str, str] = {}
    if rng.random() < 0.7:
        two = rng.random() < 0.5
        made.append(costs_of.ProportionalCost("fee", "sale" if two else None))
        given |= {"fee": "fee", **({"sale": "sale"} if two else {})}
    if rng.random() < 0.2:
        made.append(costs_of.QuadraticCost("square", "volume"))
        given |= {"square": "square", "volume": "volume"}
    if rng.random() < 0.2:
        made.append(costs_of.ImpactCost("volatility", "volume"))
        given |= {"volatility": "volatility", "volume": "volume"}
    if rng.random() < 0.3:
        made.append(costs_of.HoldingCost("yield", "rate"))
    if fees and rng.random() < 0.5:
        made.append(costs_of.FixedFee("ticket"))
        given["ticket"] = "ticket"
    if fees and rng.random() < 0.5:
        made.append(costs_of.MinimumCommission("minimum", "commission"))
        given |= {"minimum": "minimum", "commission": "commission"}
    return made, Costs(**given)


def random_case(
    rng: np.random.Generator, *, largest: int = 200, exponent: int | None = None, discrete: bool | None = None
) -> Case:
    """A random request: NAV of about 1e`exponent` (−12 to 12), 1 to `largest` assets, up to five rules."""
    n = int(np.clip(round(10 ** rng.uniform(0, np.log10(largest + 0.4))), 1, largest))
    drawn = int(rng.integers(-12, 13))
    scale = Fraction(10) ** ((drawn if exponent is None else exponent) - 6)
    whole = bool(rng.random() < 0.35) if discrete is None else discrete
    if whole and rng.random() < 0.98:  # a search over orders takes a minute for many assets
        n = min(n, 10)
    table = drawn_table(rng, n, scale)
    risk, covariance = drawn_risk(rng, list(table.index[:-1]))
    made, costs = drawn_costs(rng, whole)
    # A point part of the way to the targets, that the cash can pay for.
    price, goal = table["price"].to_numpy(), table["target"].to_numpy()
    before = Books(table, CASH, {}, costs)
    weights = np.array([float(before.before[a] / before.nav) for a in before.assets])
    part = (goal - weights) * rng.uniform(0.2, 1.0, n + 1) * (rng.random(n + 1) < 0.8)
    part[-1] = 0.0
    for _ in range(40):
        units = np.round(part * float(before.nav / scale) / price, 8)
        trades = {a: exact(x) * scale for a, x in zip(before.assets, units, strict=True) if a != CASH and x}
        books = Books(table, CASH, trades, costs)
        if books.after[CASH] >= books.nav / 400:
            break
        part /= 2
    planted = pd.Series({a: float(x / books.nav) for a, x in books.early.items()})
    plant = Plant(rng, table, covariance, planted, books, scale, float(rng.uniform(0.005, 0.3)))
    among = [rule for rule in CONVEX if covariance is not None or rule not in _NEED_RISK]
    if before.before[CASH] < 0:  # a debt that is wanted as a holding: to be given in two rows
        among.remove(limited_collateral)
    chosen = [among[i] for i in rng.permutation(len(among))[: rng.integers(0, 6)]]
    if sum(rule in _OWN_CASH for rule in chosen) > 1:
        chosen.remove(cash_band)
    if whole:
        chosen = [rule for rule in chosen if rule is not custom or n < 8]
        chosen += [DISCRETE[i] for i in rng.permutation(len(DISCRETE))[: rng.integers(0, 3)]]
    found = {rule.__name__: rule(plant) for rule in chosen}
    judges = {name: judge for name, (_, judge) in found.items()}
    if not any(rule in _OWN_CASH for rule in chosen):  # the floor of 0 that every portfolio has
        judges["cash"] = lambda b: iter([("floor", b.after[CASH] + ROUNDED * b.nav / 100, False)])
    discrete_rules = any(rule in DISCRETE for rule in chosen) or costs.ticket or costs.minimum
    rebalancer = Rebalancer(
        cash=CASH,
        risk=risk,
        costs=made,
        constraints=[rule for rule, _ in found.values()],
        aversion=float(np.round(rng.uniform(1, 20), 3)),
        horizon=float(np.round(rng.uniform(0.1, 2), 3)),
    )
    fees = ["fees"] if costs.ticket or costs.minimum else []
    said = " ".join([f"n={n}", f"nav=1e{drawn if exponent is None else exponent}", *found, *fees])
    return Case(table, rebalancer, costs, judges, trades, bool(discrete_rules), said)
