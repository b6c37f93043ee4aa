"""Sequences of orders: every prefix and partial fill judged in whole numbers by a checker of its own, brute force
over all permutations and over fine slices, and accounts done by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest

from equipoise import InputError, Plan, Rebalancer, Status
from equipoise.constraints import (
    CashBand,
    CashFloor,
    CollateralRatio,
    GroupLimit,
    HealthFactor,
    InitialMargin,
    Leverage,
    LongOnly,
    LotSize,
    Rule,
    TrackingErrorLimit,
    Turnover,
)
from equipoise.constraints.numbers import exact
from equipoise.constraints.pieces import Bound, Opaque, Piece, Row
from equipoise.constraints.rules.rule import Account
from equipoise.optimizer import CovarianceRisk, FixedFee, ImpactCost, MinimumCommission, ProportionalCost
from equipoise.optimizer.sequence.rules import watched
from equipoise.optimizer.sequence.slices import Orders
from equipoise.optimizer.sequence.steps import OrderSequence, sequenced
from equipoise.optimizer.verification.exact import verify

STATE = ("HealthFactor", "CollateralRatio", "InitialMargin", "Leverage")
FLOORS = ("CashFloor", "CashBand")
GRAIN = 2**200


def planned(table: pd.DataFrame, rules: Sequence[Rule], trades: dict[str, str], **given: Any) -> Plan:
    """The plan of these trades (units by asset), as the exact check sees it; targets do not matter here."""
    worth = table["quantity"] * table["price"]
    problem = Rebalancer(cash="USD", constraints=rules, **given).problem(table.assign(target=worth / worth.sum()))
    exact = tuple(Fraction(trades.get(asset, "0")) for asset in problem.assets)
    checked = verify(problem, exact, whole_lots=problem.step is not None)
    status = Status.FEASIBLE if checked.passed else Status.UNSOLVED
    return Plan(status, None, "", problem, None, checked, exact, checked.weights)


def account(*rows: tuple[str, float, float, float], **columns: list[float]) -> pd.DataFrame:
    """Rows of asset, quantity, price and liquidation threshold, and the cash."""
    table = pd.DataFrame(rows, columns=["asset", "quantity", "price", "threshold"]).set_index("asset")
    return table.assign(**columns)


def told(found: OrderSequence) -> list[tuple[str, str, float]]:
    return [(step.side, step.asset, float(step.quantity)) for step in found.steps]


class Judge:
    """The state rules of a plan in whole numbers: nothing of the library but the rules' own numbers.

    A state is a tuple of the parts done of each order (counted in 1/`parts`); its `excess` is by how much each
    rule is broken, and `limits` what the exact check forgives. `lent`: rules see the cash at its floor at least.
    """

    def __init__(
        self, plan: Plan, parts: int = 1, *, lent: bool = False, on_the_way: Mapping[str, float] | None = None
    ) -> None:
        assert plan.problem is not None and plan.verified is not None
        problem, table = plan.problem, plan.problem.portfolio
        self.cash, self.parts, self.lent = problem.cash, parts, lent
        self.orders = [i for i, trade in enumerate(plan.trades) if trade]
        held = [q * p for q, p in zip(table.exact_quantity, table.exact_price, strict=True)]
        money = [plan.trades[i] * table.exact_price[i] / parts for i in self.orders]
        cost = [plan.verified.costs[i] / parts for i in self.orders]
        cents = math.lcm(*(x.denominator for x in (*held, *money, *cost)))
        self.held, self.money, self.cost = ([int(x * cents) for x in each] for each in (held, money, cost))
        nav, self.scale = sum(self.held), cents * GRAIN  # every float here is a whole number of 1/GRAIN
        whole = problem.step is not None
        tolerance = math.floor(Fraction(1e-12 if whole else 1e-9) * nav * GRAIN)
        titled = [(title, piece) for title, piece in problem.pieces if title in STATE and isinstance(piece, Row)]
        floor = max(
            float(piece.lower[self.cash])
            for title, piece in problem.pieces
            if title in FLOORS and isinstance(piece, Bound)
        )
        self.floor = int(Fraction(floor) * GRAIN) * nav
        self.limits = [*(tolerance for _ in titled), 0 if whole and floor == 0 else tolerance]
        n, limits = len(self.held), on_the_way or {}
        rows = [self.limited(row, limits[t]) if t in limits else row for t, row in titled]
        numbers = [
            [
                [0] * n if c is None else [int(Fraction(float(x)) * GRAIN) for x in c]
                for c in (r.weight, r.long, r.short)
            ]
            for r in rows
        ]
        self.rows = [
            ([a + b for a, b in zip(w, up, strict=True)], [a - b for a, b in zip(w, s, strict=True)])
            for w, up, s in numbers
        ]
        self.upper = [int(Fraction(row.upper) * GRAIN) * nav for row in rows]
        self.known: dict[tuple[Any, ...], list[Any]] = {}

    @staticmethod
    def limited(row: Row, limit: float) -> Row:
        """A health factor's row with another limit: that many times the debt."""
        assert row.short is not None and row.per is not None and row.per.short is not None
        return replace(row, short=row.short - (row.stated - limit) * row.per.short)

    def excess(self, done: tuple[Any, ...]) -> list[Any]:
        if done in self.known:
            return self.known[done]
        value, paid = list(self.held), 0
        for i, part, money, cost in zip(self.orders, done, self.money, self.cost, strict=True):
            value[i] += part * money
            value[self.cash] -= part * (money + cost)
            paid += part * cost
        found, left = [], value[self.cash]
        if self.lent:
            value[self.cash] = max(left, self.floor // GRAIN)
        for (long, short), upper in zip(self.rows, self.upper, strict=True):
            own = sum((a if x > 0 else b) * x for a, b, x in zip(long, short, value, strict=True))
            cash = value[self.cash]
            a, b = long[self.cash], short[self.cash]
            before_costs = own + (a if cash + paid > 0 else b) * (cash + paid) - (a if cash > 0 else b) * cash
            found.append(max(own, before_costs) - upper)
        self.known[done] = [*found, self.floor - left * GRAIN]
        return self.known[done]

    def safe(self, before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
        """Every rule holds after the step; one that was broken before it is not broken by more."""
        return all(
            new <= max(limit, old)
            for new, old, limit in zip(self.excess(after), self.excess(before), self.limits, strict=True)
        )

    def permuted(self) -> bool:
        """Whether whole orders are safe in some permutation: all of them are tried."""
        n = len(self.orders)

        def state(done: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(self.parts * (j in done) for j in range(n))

        return any(
            all(self.safe(state(order[:k]), state(order[: k + 1])) for k in range(n))
            for order in itertools.permutations(range(n))
        )

    def sliced(self) -> bool:
        """Whether slices of 1/`parts` of the orders are safe in some sequence: all states are tried."""
        n = len(self.orders)
        todo, seen = [(0,) * n], {(0,) * n}
        while todo:
            state = todo.pop()
            if state == (self.parts,) * n:
                return True
            for j in range(n):
                further = (*state[:j], state[j] + 1, *state[j + 1 :])
                if state[j] < self.parts and further not in seen and self.safe(state, further):
                    seen.add(further)
                    todo.append(further)
        return False


def turned(plan: Plan) -> int:
    """How many positions change their sign."""
    assert plan.problem is not None
    held = plan.problem.portfolio.exact_quantity
    return sum(q * x < 0 and abs(x) > abs(q) for q, x in zip(held, plan.trades, strict=True))


def judged(plan: Plan, found: OrderSequence, rng: np.random.Generator, fills: int = 100) -> None:
    """The steps are the plan's orders, and every prefix and this many partial fills are safe."""
    steps = found.steps
    assert plan.problem is not None and plan.verified is not None
    assets = plan.problem.assets
    trades = {asset: trade for asset, trade in zip(assets, plan.trades, strict=True) if trade}
    signed = [step.quantity if step.side == "buy" else -step.quantity for step in steps]
    filled = 1000  # thousandths of a step
    parts = filled * math.lcm(*((q / trades[s.asset]).denominator for q, s in zip(signed, steps, strict=True)))
    judge, position = Judge(plan, parts, on_the_way=found.on_the_way), {asset: j for j, asset in enumerate(trades)}
    held = dict(zip(assets, plan.problem.portfolio.exact_quantity, strict=True))
    states = [(0,) * len(trades)]
    for step, quantity in zip(steps, signed, strict=True):
        assert step.quantity > 0
        assert step.reduce_only == (held[step.asset] * quantity < 0 and abs(quantity) <= abs(held[step.asset]))
        held[step.asset] += quantity
        after = list(states[-1])
        after[position[step.asset]] += int(quantity / trades[step.asset] * parts)
        states.append(tuple(after))
        assert judge.safe(states[-2], states[-1])
        assert -step.slack * judge.scale == max(judge.excess(states[-1]))
        if (lots := plan.problem.step) is not None and held[step.asset]:
            i = assets.index(step.asset)
            assert step.quantity % exact(lots.lot[i]) == 0
            assert step.quantity * plan.problem.portfolio.exact_price[i] >= exact(lots.min_notional[i])
    assert states[-1] == (parts,) * len(trades)
    assert steps[-1].cash == plan.verified.cash
    for k, fill in zip(
        rng.integers(len(steps), size=fills).tolist(), rng.integers(1, filled, fills).tolist(), strict=True
    ):
        before, after = states[k], states[k + 1]
        assert judge.safe(before, tuple(a + (b - a) * fill // filled for a, b in zip(before, after, strict=True)))


def drawn(rng: np.random.Generator, *, lots: bool, most: int = 5) -> Plan:
    """A random lending account and random trades, with limits that its end keeps, some just so."""
    while True:
        n = int(rng.integers(2, most + 1))
        debts = int(rng.integers(1, max(2, n // 2 + 1)))
        price = np.round(np.exp(rng.normal(3.0, 1.0, n)), 2)
        sign = np.where(np.arange(n) < n - debts, 1.0, -1.0)
        held = sign * np.maximum(1.0, np.round(rng.uniform(0.3, 1.0, n) * np.where(sign > 0, 9e4, 4e4) / price))
        if not lots:
            held = np.round(held * 1.01, 3)
        trade = np.round(held * rng.uniform(-0.7, 0.7, n))
        flips = rng.random(n) < 0.1
        trade[flips] = -np.round(held[flips] * 1.6)
        if not lots:
            trade = np.round(trade * 0.97, 3)
        worth, traded = held * price, trade * price
        fee = float(rng.choice([0.0, 0.001, 0.01]))
        spent = float(traded.sum() + fee * np.abs(traded).sum())
        cash = round(max(spent, 0.0) + float(rng.choice([0.0, 100.0, 2e4])), 2)
        if worth.sum() + cash <= 1e4:
            continue
        threshold = np.where(rng.random(n) < 0.8, rng.choice([0.6, 0.7, 0.8, 0.85], n), 0.0)
        after = worth + traded

        def health(w: np.ndarray, c: np.ndarray = threshold) -> float:
            debt = -np.minimum(w, 0.0).sum()
            return float((c * np.maximum(w, 0.0)).sum() / debt) if debt > 0 else math.inf

        gross = np.abs(after).sum() / (worth.sum() + cash)
        tight = float(rng.choice([1.0 - 1e-9, 0.995, 0.9]))
        floor = float(rng.choice([0.0, (cash - spent) / (worth.sum() + cash) * tight]))
        rules: list[Rule] = [CashFloor(max(floor, 0.0)) if rng.random() < 0.7 else CashBand(max(floor, 0.0))]
        end = min(health(after), 100.0)
        if end > 1.0 and rng.random() < 0.9:
            rules.append(HealthFactor(end * tight, "threshold"))
        if rng.random() < 0.2:
            rules.append(Leverage(gross=float(max(gross, np.abs(worth).sum() / (worth.sum() + cash)) / tight)))
        if rng.random() < 0.2:
            rules.append(InitialMargin(0.1, utilisation=0.9))
        if (ratio := min(health(after, np.ones(n)), 100.0)) > 1.2 and rng.random() < 0.2:
            rules.append(CollateralRatio(ratio * tight * 0.99))
        if lots:
            rules.append(LotSize("lot", min_notional=float(rng.choice([0.0, 50.0]))))
        names = [f"{'C' if s > 0 else 'D'}{i}" for i, s in enumerate(sign)]
        table = pd.DataFrame(
            {
                "quantity": [*held, cash],
                "price": [*price, 1.0],
                "threshold": [*threshold, 0.0 if rng.random() < 0.7 else 0.9],
                "lot": 1.0,
            },
            index=[*names, "USD"],
        )
        costs = [ProportionalCost(fee)]
        plan = planned(table, rules, {a: repr(float(x)) for a, x in zip(names, trade, strict=True)}, costs=costs)
        if plan.status.ok and any(plan.trades):
            return plan


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_every_prefix_and_partial_fill_is_safe(seed: int) -> None:
    """1,000 plans, every prefix and 100 partial fills of each."""
    size = 250
    rng = np.random.default_rng(seed)
    unsafe = sliced = 0
    for _ in range(size):
        plan = drawn(rng, lots=bool(rng.random() < 0.5))
        found = sequenced(plan)
        if found.safe:
            judged(plan, found, rng)
            sliced += any(step.fraction < 1 for step in found.steps)
        else:
            assert found.steps == () and found.short_by > 0 and str(found.blocked_by) in found.reason
            unsafe += 1
    assert 0 < unsafe <= 0.2 * size  # the draws are neither trivial nor hopeless
    assert sliced >= 0.05 * size


@pytest.mark.slow
def test_nothing_is_missed_by_brute_force() -> None:
    """Where some permutation of whole orders is safe, none is cut; where we find nothing, no fine slices do, either."""
    rng = np.random.default_rng(11)
    unsafe = 0
    for _ in range(150):
        plan = drawn(rng, lots=bool(rng.random() < 0.5), most=5)
        found, judge = sequenced(plan), Judge(plan)
        if judge.permuted():
            assert found.safe and len(found.steps) <= len(judge.orders) + turned(plan)
        if not found.safe:
            unsafe += 1
            assert not Judge(plan, {1: 20, 2: 20, 3: 12, 4: 6, 5: 4}[len(judge.orders)]).sliced()
    assert unsafe > 5


@pytest.mark.slow
def test_temporary_cash_is_the_least_for_whole_orders() -> None:
    """Against all permutations: the least amount by which the cash falls below its floor.

    (Of accounts in which no rule counts the cash above its floor, so that rows hold by themselves or not.)
    """
    rng = np.random.default_rng(3)
    compared = 0
    while compared < 15:
        plan = drawn(rng, lots=True, most=4)
        found = sequenced(plan, most_slices=1)
        assert plan.problem is not None
        if found.safe or plan.problem.portfolio.columns["threshold"][plan.problem.cash]:
            continue
        if {"CollateralRatio", "InitialMargin"} & set(found.rules) or turned(plan):
            continue
        judge, least = Judge(plan, lent=True), math.inf
        floor, n = len(judge.rows), len(judge.orders)
        if any(x > limit for x, limit in zip(judge.excess((0,) * n), judge.limits, strict=True)):
            continue
        for order in itertools.permutations(range(n)):
            states = [tuple(int(j in order[:k]) for j in range(n)) for k in range(n + 1)]
            if all(
                new <= max(limit, old)
                for before, after in itertools.pairwise(states)
                for new, old, limit in list(zip(judge.excess(after), judge.excess(before), judge.limits, strict=True))[
                    :floor
                ]
            ):
                least = min(least, max(judge.excess(state)[floor] for state in states) / judge.scale)
        compared += 1
        if math.isinf(least):
            assert math.isnan(found.temporary_cash)
        else:
            assert found.temporary_cash == pytest.approx(least, rel=1e-9, abs=1e-3)
            lent = sequenced(plan, temporary_cash=found.temporary_cash, most_slices=1)
            assert lent.safe and lent.temporary_cash == pytest.approx(least, rel=1e-9, abs=1e-3)
            sliced = sequenced(plan, temporary_cash=found.temporary_cash_sliced)
            assert sliced.safe and sliced.temporary_cash <= found.temporary_cash_sliced


def test_repay_before_withdraw() -> None:
    """0.8·(10 − 2)·1000 against 1.5·5000 fails, against 1.5·3000 holds: first repay, then withdraw."""
    table = account(("ETH", 10, 1000, 0.8), ("DEBT", -5000, 1, 0), ("USD", 2000, 1, 0))
    found = sequenced(planned(table, [HealthFactor(1.5, "threshold")], {"ETH": "-2", "DEBT": "2000"}))
    assert told(found) == [("buy", "DEBT", 2000.0), ("sell", "ETH", 2.0)]
    assert all(step.reduce_only for step in found.steps)
    assert [(float(s.cash), s.rule) for s in found.steps] == [(0.0, "CashFloor"), (2000.0, "HealthFactor")]
    assert float(found.steps[1].slack) == pytest.approx(0.8 * 8000 - 1.5 * 3000)


def test_sell_before_buy_with_costs() -> None:
    """60 in cash buys nothing for 100; the sale of 50 for 1 % brings 49.5, of which the buy for 1 % takes 101."""
    table = account(("A", 5, 10, 0), ("B", 1, 100, 0), ("USD", 60, 1, 0))
    plan = planned(table, [LongOnly()], {"A": "-5", "B": "1"}, costs=[ProportionalCost(0.01)])
    found = sequenced(plan)
    assert told(found) == [("sell", "A", 5.0), ("buy", "B", 1.0)]
    assert [step.cash for step in found.steps] == [Fraction("109.5"), Fraction("8.5")]
    assert [step.reduce_only for step in found.steps] == [True, False]


@pytest.mark.parametrize(
    ("held", "rules", "steps"),
    [
        (4.0, [], [(4.0, True), (5.0, False)]),
        (4.5, [], [(4.5, True), (4.5, False)]),
        (4.5, [LotSize("lot")], [(4.0, True), (5.0, False)]),  # 4.5 would leave 4.5 to open, no whole lots
        (0.5, [LotSize("lot")], [(9.0, False)]),
        (4.0, [LotSize("lot", min_notional=600.0)], [(9.0, False)]),  # opening 5 would be an order of 500
        (4.0, [LotSize("lot", min_notional=500.0)], [(4.0, True), (5.0, False)]),  # closing 4 is exempt
        (-4.0, [], [(9.0, False)]),
    ],
)
def test_a_flip_closes_then_opens(held: float, rules: list[Rule], steps: list[tuple[float, bool]]) -> None:
    table = account(("A", held, 100, 0), ("USD", 5000, 1, 0), lot=[1.0, 0.0])
    found = sequenced(planned(table, [Leverage(gross=2.0), *rules], {"A": "-9"}))
    assert [(float(step.quantity), step.reduce_only) for step in found.steps] == steps
    assert found.steps[-1].cash == 5900


def test_two_slices() -> None:
    """0.8·C ≥ 1.5·5000 down to C = 9375: sell 0.625; repay all 500 + 625; then 0.8·8000 ≥ 1.5·3875 for the rest."""
    table = account(("ETH", 10, 1000, 0.8), ("DEBT", -5000, 1, 0), ("USD", 500, 1, 0))
    plan = planned(table, [HealthFactor(1.5, "threshold")], {"ETH": "-2", "DEBT": "2000"})
    found = sequenced(plan)
    assert told(found) == [
        ("sell", "ETH", 0.625),
        ("buy", "DEBT", 1125.0),
        ("sell", "ETH", 1.375),
        ("buy", "DEBT", 875.0),
    ]
    assert [step.fraction for step in found.steps] == [
        Fraction("0.3125"),
        Fraction("0.5625"),
        Fraction("0.6875"),
        Fraction("0.4375"),
    ]
    judged(plan, found, np.random.default_rng(0))
    whole = sequenced(plan, most_slices=1)
    assert not whole.safe and whole.steps == ()


def test_slices_are_whole_lots() -> None:
    """The same in lots of 0.1: 0.625 is rounded down to 0.6, and 1100 are repaid."""
    table = account(("ETH", 10, 1000, 0.8), ("DEBT", -5000, 1, 0), ("USD", 500, 1, 0), lot=[0.1, 1.0, 0.0])
    rules = [HealthFactor(1.5, "threshold"), LotSize("lot", min_notional=100.0)]
    plan = planned(table, rules, {"ETH": "-2", "DEBT": "2000"})
    assert told(sequenced(plan)) == [
        ("sell", "ETH", 0.6),
        ("buy", "DEBT", 1100.0),
        ("sell", "ETH", 1.4),
        ("buy", "DEBT", 900.0),
    ]


CIRCLE = account(("ETH", 9.375, 1000, 0.8), ("DEBT", -5000, 1, 0), ("USD", 0, 1, 0), lot=[0.5, 1.0, 0.0])


def test_a_circle_needs_a_flash_loan() -> None:
    """Health factor at its limit and no cash: nothing can move, by exactly 0.8·2000 and 2000; with 2000 it can."""
    plan = planned(CIRCLE, [HealthFactor(1.5, "threshold")], {"ETH": "-2", "DEBT": "2000"})
    found = sequenced(plan)
    assert not found.safe and found.proven and found.table.empty
    assert found.blocked_by == "HealthFactor" and found.short_by == pytest.approx(1600.0, abs=1e-4)
    assert "buying DEBT would break CashFloor by 2,000.00" in found.reason
    assert "no slice of any order is safe as the first step" in found.reason
    assert found.temporary_cash == pytest.approx(2000.0)
    lent = sequenced(plan, temporary_cash=2000.0)
    assert told(lent) == [("buy", "DEBT", 2000.0), ("sell", "ETH", 2.0)]
    assert [step.cash for step in lent.steps] == [-2000, 0]
    # With 125: 0.8·x = 1.5·125 frees 234.375 of collateral, and so on: more each time.
    assert found.temporary_cash_sliced == pytest.approx(125.0)
    assert told(sequenced(plan, temporary_cash=125.0))[:2] == [("buy", "DEBT", 125.0), ("sell", "ETH", 0.234375)]
    assert not sequenced(plan, temporary_cash=1900.0, most_slices=1).safe


def test_temporary_cash_is_no_collateral() -> None:
    """Cash counts as collateral here, the flash loan does not: 0.9·cash is not there while it is repaid from it."""
    table = CIRCLE.assign(threshold=[0.8, 0.0, 0.9])
    plan = planned(table, [HealthFactor(1.5, "threshold")], {"ETH": "-2", "DEBT": "2000"})
    assert told(sequenced(plan)) == [("sell", "ETH", 2.0), ("buy", "DEBT", 2000.0)]  # the proceeds do count
    # At 0.2 they count too little; 2000 of a flash loan at 0.2 would cover for nothing.
    poor = planned(
        CIRCLE.assign(threshold=[0.8, 0.0, 0.2]), [HealthFactor(1.5, "threshold")], {"ETH": "-2", "DEBT": "1000"}
    )
    found = sequenced(poor)
    assert not found.safe
    assert found.temporary_cash == pytest.approx(1000.0)


def test_a_bend_where_the_cash_runs_out_is_seen() -> None:
    """Own cash at 0.9 buys collateral at 0.5, down by 400 when it is spent; what is lent then adds 500 again."""
    rows = ("A", 2000, 1, 0.0), ("B", 0, 1, 0.5), ("C", 1000, 1, 0.8), ("DEBT", -1500, 1, 0), ("USD", 1000, 1, 0.9)
    plan = planned(account(*rows), [HealthFactor(1.0, "threshold")], {"A": "-2000", "B": "2000"})
    assert plan.problem is not None
    orders = Orders(plan, watched(plan.problem, ()), 1000.0)
    start = orders.start()
    buy = next((j, leg) for j, leg in orders.left(start, orders.goal) if leg.quantity > 0)
    bought = orders.moved(start, buy[0], buy[1].quantity)
    slack = [orders.money(-state.excess[0]) for state in (start, bought)]
    assert slack == [pytest.approx(200.0), pytest.approx(300.0)]
    assert orders.after(start, *buy) is None
    assert told(sequenced(plan, temporary_cash=1000.0)) == [("sell", "A", 2000.0), ("buy", "B", 2000.0)]


def test_bends_of_an_order_that_goes_on() -> None:
    """A commission of 10 at least, 0.1 %, covers the first 10,000 of 20,000. After 4,000 the cash of 12,000 has 7,990
    left. What follows costs 1 each for 6,000 more, then 1.001 each: the cash runs out 1,990/1.001 after these."""
    rows = ("A", 20_000, 1, 0.0), ("B", 0, 1, 0.0), ("USD", 12_000, 1, 0.9)
    costs = [MinimumCommission({"B": 10.0}, {"B": 0.001})]
    table = account(*rows)
    plan = planned(table, [], {"A": "-20000", "B": "20000"}, costs=costs)
    assert plan.problem is not None
    orders = Orders(plan, watched(plan.problem, ()), 20_000.0)
    start = orders.start()
    buy = next(j for j, leg in orders.left(start, orders.goal) if leg.quantity > 0)
    begun = orders.moved(start, buy, orders.total[buy] // 5)
    left = orders.total[buy] - begun.quantity
    bends = {part * 16_000 for part in orders._bends(begun, buy, left)}
    covered, empty = 6000, 6000 + Fraction(1990) / Fraction("1.001")
    assert covered in bends
    assert min(abs(x - empty) for x in bends) < Fraction(1, 10**9)
    at = orders.moved(begun, buy, Fraction(empty, 16_000) * left)
    assert abs(float((at.cash[0] - at.paid[0]) / (begun.cash[0] - begun.paid[0]))) < 1e-9


def test_a_dead_end_is_left_again() -> None:
    """Repaying first would take the cash that B needs, without which C may not be sold."""
    rows = ("B", 0, 1, 0.0), ("C", 2000, 1, 0.0), ("DEBT", -1000, 1, 0.0), ("USD", 1000, 1, 0.0)
    table = account(*rows, kind=["x", "x", "debt", "cash"])
    rules = [GroupLimit("kind", lower={"x": 0.85}), CollateralRatio(1.2)]  # 1700 of 2000
    plan = planned(table, rules, {"B": "500", "C": "-800", "DEBT": "1000"})
    found = sequenced(plan, always=["GroupLimit"], most_slices=1)
    assert told(found) == [("buy", "B", 500.0), ("sell", "C", 800.0), ("buy", "DEBT", 1000.0)]


def test_lots_too_coarse_for_any_slice() -> None:
    """0.8·C ≥ 7500 leaves room for 0.3 ETH, lots are 0.5, and 200 in cash repay nothing in lots of 500."""
    table = account(("ETH", 9.675, 1000, 0.8), ("DEBT", -5000, 1, 0), ("USD", 200, 1, 0), lot=[0.5, 500.0, 0.0])
    plan = planned(table, [HealthFactor(1.5, "threshold"), LotSize("lot")], {"ETH": "-2", "DEBT": "2000"})
    found = sequenced(plan)
    assert not found.safe and found.proven
    assert "at most 0.3 ETH is safe as the first step, less than lots and minimums allow" in found.reason
    assert sequenced(planned(table, [HealthFactor(1.5, "threshold")], {"ETH": "-2", "DEBT": "2000"})).safe


def test_no_last_step() -> None:
    """Room at the start, none at the end: cash and health factor both end at their limits, and one collateral is
    sold for another. Before the last sale the cash would be below its floor, before the last buy the factor."""
    table = account(("ETH", 5, 1000, 0.8), ("BTC", 1, 1000, 0.7), ("DEBT", -2580, 1, 0), ("USD", 100, 1, 0))
    plan = planned(table, [HealthFactor((0.8 * 3000 + 0.7 * 3100) / 2580, "threshold")], {"ETH": "-2", "BTC": "2.1"})
    found = sequenced(plan)
    assert not found.safe and found.proven
    assert "no slice of any order is safe as the last step" in found.reason
    assert found.temporary_cash == pytest.approx(2000.0)
    assert sequenced(plan, temporary_cash=2000.0).safe


def test_an_account_that_starts_liquidatable_never_gets_worse() -> None:
    """0.8·8000/5000 = 1.28 < 1.5: repay what there is, only then sell, then repay the rest."""
    table = account(("ETH", 8, 1000, 0.8), ("DEBT", -5000, 1, 0), ("USD", 2000, 1, 0))
    plan = planned(table, [HealthFactor(1.5, "threshold")], {"ETH": "-1.5", "DEBT": "2200"})
    found = sequenced(plan)
    assert told(found) == [("buy", "DEBT", 2000.0), ("sell", "ETH", 1.5), ("buy", "DEBT", 200.0)]
    assert "HealthFactor is broken at the start" in found.reason
    judged(plan, found, np.random.default_rng(0))
    # Broken still: a repayment that does not yet heal is allowed, a sale that worsens is not, if that is said.
    poor = planned(
        table.assign(quantity=[8.0, -5000.0, 300.0]), [HealthFactor(1.5, "threshold")], {"ETH": "-3", "DEBT": "3300"}
    )
    found = sequenced(poor, on_the_way={"HealthFactor": 1.5})
    assert not found.safe and found.blocked_by == "HealthFactor"


def test_a_repair_without_idle_cash() -> None:
    """0.83·245/150 = 1.356 against 1.5, and no cash: a sale must come before the repayment that it pays for.

    Selling all 49.5 units at once leaves 0.83·195.5/150 = 1.08. By default nine tenths of the buffer above the
    liquidation at 1 stay: 1 + 0.9·0.3557 = 1.320; slices grow as the debt shrinks.
    """
    table = account(("ETH", 245, 1, 0.83), ("DEBT", -150, 1, 0), ("USD", 0, 1, 0))
    plan = planned(table, [HealthFactor(1.5, "threshold")], {"ETH": "-49.5", "DEBT": "49.5"})
    assert plan.status.ok
    start, most = 0.83 * 245 / 150, 0.83 * 195.5 / 100.5
    assert start < 1.36 and most > 1.6
    found = sequenced(plan)
    assert found.safe and found.on_the_way == {"HealthFactor": pytest.approx(0.9 * start + 0.1)}
    assert found.on_the_way["HealthFactor"] - 1e-9 <= found.worst["HealthFactor"] < start
    assert 4 <= len(found.steps) <= 40
    judged(plan, found, np.random.default_rng(0))
    # So near to where it starts as one likes, in more slices; at the first its room is 1.349 less.
    near = sequenced(plan, on_the_way={"HealthFactor": 1.349})
    assert near.safe and 1.349 - 1e-9 <= near.worst["HealthFactor"] < 1.35
    assert len(near.steps) > len(found.steps)
    judged(plan, near, np.random.default_rng(0))
    # In one go, if the venue's own liquidation is the limit; never below it.
    assert len(sequenced(plan, on_the_way={"HealthFactor": 1.0}).steps) == 2
    strict = sequenced(plan, on_the_way={"HealthFactor": 1.5})
    assert not strict.safe and strict.proven
    # A rule that holds at the start keeps its own limit unless another is given.
    level = planned(table.assign(quantity=[271.0843374, -150.0, 0.0]), [HealthFactor(1.5, "threshold")],
                    {"ETH": "-49.5", "DEBT": "49.5"})  # fmt: skip
    assert not sequenced(level).safe
    assert sequenced(level, on_the_way={"HealthFactor": 1.45}).safe


def test_fills_that_cost_less_than_their_share_are_safe() -> None:
    """Impact costs less a unit for a part of an order: the exact check of partial fills at their real cost."""
    rng = np.random.default_rng(4)
    table = account(("ETH", 10, 1000, 0.8), ("DEBT", -5000, 1, 0), ("USD", 500, 1, 0.5), volume=[1e5, 1e5, 1.0])
    costs = [ProportionalCost(0.001), ImpactCost(0.05, "volume")]
    plan = planned(table, [HealthFactor(1.5, "threshold")], {"ETH": "-2", "DEBT": "2000"}, costs=costs)
    found = sequenced(plan)
    assert found.safe and plan.problem is not None
    done = [Fraction(0)] * len(plan.trades)
    for step in found.steps:
        i = plan.problem.assets.index(step.asset)
        quantity = step.quantity if step.side == "buy" else -step.quantity
        for part in [*(Fraction(int(k), 1000) for k in rng.integers(1, 1000, 20)), Fraction(1)]:
            partial = [x + part * quantity if k == i else x for k, x in enumerate(done)]
            assert verify(plan.problem, partial, whole_lots=False).passed
        done[i] += quantity
    assert tuple(done) == plan.trades


def test_rules_on_the_whole_are_asked_at_the_end_only() -> None:
    """A swap within a group passes through half of it; kept at every step if asked for."""
    table = account(("A", 5, 100, 0), ("B", 0, 100, 0), ("USD", 0, 1, 0), kind=["x", "x", "cash"])
    rules = [GroupLimit("kind", lower={"x": 0.875}), Turnover(1.0)]
    plan = planned(table, rules, {"A": "-5", "B": "5"})
    found = sequenced(plan)
    assert told(found) == [("sell", "A", 5.0), ("buy", "B", 5.0)]
    assert found.rules == ("CashFloor",)
    kept = sequenced(plan, always=["GroupLimit"])
    assert kept.safe and kept.rules == ("GroupLimit", "CashFloor")
    assert len(kept.steps) == 16  # an eighth of the account at a time
    between = [float(sum(s.quantity if s.asset == "B" else -s.quantity for s in kept.steps[:k])) for k in range(1, 17)]
    assert min(between) == -0.625


def test_a_cap_on_the_cash_counts_before_costs() -> None:
    """390 of cash at most: the sale of 4 for 10 % leaves 360, but 400 before its costs, so that 3.9 go first."""
    table = account(("A", 5, 100, 0), ("B", 0, 100, 0), ("USD", 0, 1, 0), kind=["x", "x", "cash"])
    rules = [GroupLimit("kind", upper={"cash": 0.78})]
    plan = planned(table, rules, {"A": "-4", "B": "3"}, costs=[ProportionalCost(0.1)])
    assert told(sequenced(plan)) == [("sell", "A", 4.0), ("buy", "B", 3.0)]
    found = sequenced(plan, always=["GroupLimit"])
    assert told(found) == [("sell", "A", 3.9), ("buy", "B", 3.0), ("sell", "A", pytest.approx(0.1))]


def test_a_cone_can_be_asked_at_every_step() -> None:
    """Long one, short the other, almost the same asset: both at once carry little risk, each alone much."""
    table = account(("A", 0, 100, 0), ("B", 0, 100, 0), ("USD", 1000, 1, 0))
    covariance = pd.DataFrame([[0.04, 0.0396], [0.0396, 0.04]], index=["A", "B"], columns=["A", "B"])
    rules = [TrackingErrorLimit(0.02), CashFloor(-1.0)]
    plan = planned(table, rules, {"A": "4", "B": "-4"}, risk=CovarianceRisk(covariance))
    assert len(sequenced(plan).steps) == 2
    found = sequenced(plan, always=["TrackingErrorLimit"])
    assert found.safe and len(found.steps) > 4
    position = {"A": 0.0, "B": 0.0}
    for step in found.steps:
        position[step.asset] += float(step.quantity if step.side == "buy" else -step.quantity) * 100 / 1000
        w = np.array(list(position.values()))
        assert np.sqrt(w @ covariance.to_numpy() @ w) <= 0.02 * (1 + 1e-9)


def test_the_table_of_steps() -> None:
    table = account(("ETH", 10, 1000, 0.8), ("DEBT", -5000, 1, 0), ("USD", 500, 1, 0))
    plan = planned(table, [HealthFactor(1.5, "threshold")], {"ETH": "-2", "DEBT": "2000"})
    steps = sequenced(plan).table
    assert list(steps.columns) == ["asset", "side", "quantity", "reduce_only", "fraction", "cash", "slack", "rule"]
    assert steps.index.tolist() == [1, 2, 3, 4] and steps.index.name == "step"
    assert steps["cash"].tolist() == [1125.0, 0.0, 1375.0, 500.0]
    assert steps.groupby("asset")["fraction"].sum().tolist() == [1.0, 1.0]
    held = sequenced(planned(table, [], {}))
    assert held.safe and held.table.empty and list(held.table.columns) == list(steps.columns)


def test_the_same_for_any_order_of_rows() -> None:
    rng = np.random.default_rng(8)
    for _ in range(20):
        plan = drawn(rng, lots=True)
        assert plan.problem is not None
        account = plan.problem.portfolio
        table = pd.DataFrame({c: account.columns[c] for c in account.columns}, index=list(account.assets))
        trades = {a: str(x) for a, x in zip(account.assets, plan.trades, strict=True)}
        shuffled = table.sample(frac=1.0, random_state=int(rng.integers(1000)))
        again = planned(shuffled.infer_objects(), plan.problem.rules, trades)
        free = planned(table.infer_objects(), plan.problem.rules, trades)
        assert sequenced(again) == sequenced(free)


def test_a_solved_plan() -> None:
    """From the table to the sequence: a treasury below its health target sells, repays and ends where the plan does."""
    table = account(
        ("ETH", 100, 2500, 0.83),
        ("WBTC", 5, 38_000, 0.75),
        ("LINK", 2000, 25, 0.65),
        ("DEBT", -250_000, 1, 0),
        ("USDC", 20_000, 1, 0),
        target=[0.55, 0.5, 0.15, -0.5, 0.3],
        lot=[0.01, 0.001, 1.0, 1.0, 0.0],
    )
    rules = [LongOnly(except_=["DEBT"]), HealthFactor(1.6, "threshold"), LotSize("lot", min_notional=10.0)]
    plan = Rebalancer(cash="USDC", costs=[ProportionalCost(0.002)], constraints=rules).solve(table)
    assert plan.status.ok
    found = sequenced(plan)
    assert found.safe
    judged(plan, found, np.random.default_rng(1))


class Mine(Rule):
    """A custom rule that every trade keeps."""

    def pieces(self, account: Account) -> Sequence[Piece]:
        return (Opaque(label="mine", build=lambda weights, trades: [], violation=lambda weights, trades: 0.0),)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"always": ["Leverage"]}, "column 'always', value 'Leverage': there is no rule of this name"),
        ({"always": ["mine"]}, "a custom rule can be asked of the whole plan only"),
        ({"always": "HealthFactor"}, "must be a list of names"),
        ({"temporary_cash": -1.0}, "temporary_cash"),
        ({"temporary_cash": 50.0}, "the cash is 100.00 below its floor at the start"),
        ({"most_slices": 0}, "most_slices"),
    ],
)
def test_bad_arguments(given: dict[str, Any], message: str) -> None:
    table = account(("ETH", 10, 1000, 0.8), ("DEBT", -5000, 1, 0), ("USD", 500, 1, 0))
    rules = [HealthFactor(1.5, "threshold"), Mine(name="mine"), CashFloor(money=600.0)]
    plan = planned(table, rules, {"ETH": "-2", "DEBT": "1000"})
    assert plan.status.ok
    with pytest.raises(InputError, match=message):
        sequenced(plan, **given)


def test_a_tracking_error_may_have_another_limit_on_the_way() -> None:
    """Two assets that move together change places: in between the cash is far from the target, unless in slices."""
    risk = CovarianceRisk(np.array([[0.04, 0.039], [0.039, 0.04]]), assets=["A", "B"])
    table = account(("A", 60, 10, 0), ("B", 40, 10, 0), ("USD", 0, 1, 0))
    plan = planned(table, [TrackingErrorLimit(0.02)], {"A": "-20", "B": "20"}, risk=risk)
    strict = sequenced(plan, always=["TrackingErrorLimit"])
    assert strict.safe and len(strict.steps) > 2
    loose = sequenced(plan, always=["TrackingErrorLimit"], on_the_way={"TrackingErrorLimit": 0.05})
    assert loose.safe and len(loose.steps) == 2  # a fifth of NAV in cash: 0.2 · 0.2 = 0.04 a year


def test_a_plan_that_was_not_verified_has_no_sequence() -> None:
    table = account(("ETH", 10, 1000, 0.8), ("DEBT", -5000, 1, 0), ("USD", 500, 1, 0))
    with pytest.raises(InputError, match="no verified orders"):
        sequenced(planned(table, [HealthFactor(1.5, "threshold")], {"ETH": "-9"}))


def test_a_fee_is_due_with_the_first_fill() -> None:
    """No cash, and a fee of 5: it is due before the sale has brought anything in."""
    table = account(("A", 5, 100, 0), ("USD", 0, 1, 0))
    plan = planned(table, [], {"A": "-2"}, costs=[FixedFee(5.0)])
    assert plan.status.ok
    found = sequenced(plan)
    assert not found.safe and found.blocked_by == "CashFloor"
    assert found.temporary_cash == pytest.approx(5.0)
    lent = sequenced(plan, temporary_cash=5.0)
    assert lent.safe and lent.temporary_cash == 5.0 and lent.steps[-1].cash == 195
    assert sequenced(planned(table.assign(quantity=[5, 5]), [], {"A": "-2"}, costs=[FixedFee(5.0)])).safe


def test_the_least_temporary_cash_of_round_numbers_is_found() -> None:
    """Where all amounts are whole cents, a hundred-millionth of the NAV is less than the unit that is counted in."""
    table = account(("A", 1_000, 7.5, 0), ("USD", 0, 1, 0))
    found = sequenced(planned(table, [LotSize(1.0)], {"A": "-2"}, costs=[FixedFee(5.0)]))
    assert not found.safe and found.temporary_cash == found.temporary_cash_sliced == 5


@pytest.mark.parametrize(
    ("costs", "slices", "fees"),
    [
        # 0.625 are sold and 1,115 + 8.9 repaid down to 1.5; what each slice pays is what its order costs.
        ([FixedFee(5.0)], 4, 10),
        # 0.01·625 = 6.25 < 20, 0.01·1,375 = 13.75 < 20, and 20 for the order of 2,000: 20 more, and so for the debt.
        ([MinimumCommission(20.0, 0.01)], 4, 20),
    ],
)
def test_each_slice_pays_its_own_fee(costs: list[Any], slices: int, fees: int) -> None:
    table = account(("ETH", 10, 1000, 0.8), ("DEBT", -5000, 1, 0), ("USD", 500, 1, 0))
    plan = planned(table, [HealthFactor(1.5, "threshold")], {"ETH": "-2", "DEBT": "1900"}, costs=costs)
    assert plan.status.ok and plan.verified is not None
    found = sequenced(plan)
    assert found.safe and len(found.steps) == slices
    cash, paid = Fraction(500), Fraction(0)
    for step in found.steps:
        money = step.quantity * (1000 if step.asset == "ETH" else 1)
        paid += 5 if isinstance(costs[0], FixedFee) else max(Fraction(20), money / 100)
        cash += money if step.side == "sell" else -money
        assert step.cash == cash - paid >= 0
    assert found.fees == paid - plan.verified.cost
    assert found.fees >= fees


def test_slices_that_the_end_cannot_pay_for_are_none() -> None:
    """The plan ends with 8 of cash: its orders pay 5 each, two more fees of its slices are 10."""
    table = account(("ETH", 10, 1000, 0.8), ("DEBT", -5000, 1, 0), ("USD", 500, 1, 0))
    trades = {"ETH": "-2", "DEBT": "2482"}
    plan = planned(table, [HealthFactor(1.5, "threshold")], trades, costs=[FixedFee(5.0)])
    assert plan.status.ok and plan.verified is not None and plan.verified.cash == 8
    assert not sequenced(plan).safe
    assert sequenced(planned(table, [HealthFactor(1.5, "threshold")], trades)).safe
