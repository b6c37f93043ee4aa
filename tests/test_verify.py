"""The exact check: against money counted by hand, and against orders that were tampered with."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest

from equipoise import Plan, Rebalancer
from equipoise.constraints import CashFloor, DriftBand, HealthFactor, LongOnly, LotSize, TrackingErrorLimit, Turnover
from equipoise.optimizer import CovarianceRisk, ImpactCost, ProportionalCost, Verified
from equipoise.optimizer.verification.exact import verify

TABLE = pd.DataFrame(
    {
        "quantity": [10.0, 30.0, 500.0],
        "price": [100.1, 20.7, 1.0],
        "target": [0.4, 0.4, 0.2],
        "lot": [1.0, 1.0, 0.0],
        "threshold": [0.8, 0.5, 0.0],
    },
    index=["A", "B", "USD"],
)


def plan(*rules: object, costs: object = (ProportionalCost(buy=0.001, sell=0.0025),)) -> Plan:
    return Rebalancer(costs=costs, constraints=[*rules, LotSize("lot", min_notional=20.7)], cash="USD").solve(TABLE)  # type: ignore[arg-type]


def checked(made: Plan, **trades: str) -> Verified:
    """The check of these trades (units by asset) on the problem of a plan."""
    assert made.problem is not None
    return verify(made.problem, [Fraction(trades.get(a, "0")) for a in made.problem.assets], whole_lots=True)


def failed(made: Plan, **trades: str) -> set[str]:
    return {check.rule for check in checked(made, **trades).checks if not check.passed}


def test_cash_to_the_last_digit() -> None:
    """Sell 2 A, buy 3 B: proceeds, costs and cash as decimals say."""
    result = checked(plan(), A="-2", B="3")
    fees = Decimal("200.2") * Decimal("0.0025") + Decimal("62.1") * Decimal("0.001")
    assert result.cost == Fraction(fees)
    assert result.cash == Fraction(Decimal("500") + Decimal("200.2") - Decimal("62.1") - fees)
    assert result.nav == Fraction(Decimal("1001") + Decimal("621") + 500)
    assert result.passed


def test_impact_cost_is_rounded_up() -> None:
    """σ·|x|^{3/2}/√V: x = 64 and V = 10,000 give 0.02·512/100 = 0.1024; never less, hardly more."""
    table = TABLE.assign(price=[32.0, 20.7, 1.0])
    made = Rebalancer(costs=[ImpactCost(0.02, 10_000.0)], constraints=[LotSize("lot")], cash="USD").solve(table)
    cost = checked(made, A="2").cost
    assert cost >= Fraction("0.1024") * (1 - Fraction(1, 10**15))
    assert float(cost) == pytest.approx(0.1024, rel=1e-12)


@pytest.mark.parametrize(
    ("rule", "trades", "kept"),
    [
        (CashFloor(money=400.0), {"B": "4"}, True),
        (CashFloor(money=400.0), {"B": "5"}, False),
        (LongOnly(), {"A": "-10"}, True),
        (LongOnly(), {"A": "-11"}, False),
        (Turnover(0.05), {"A": "-1", "B": "4"}, True),  # (100.1 + 82.8)/2122/2 = 4.31 %
        (Turnover(0.05), {"A": "-2", "B": "1"}, False),  # (200.2 + 20.7)/2122/2 = 5.20 %
        (DriftBand(relative=0.18, assets=["A"]), {"A": "-1"}, True),  # 0.4 ± 0.072: 42.46 %
        (DriftBand(relative=0.18, assets=["A"]), {"A": "1"}, False),  # 51.89 %
    ],
)
def test_rules_by_hand(rule: object, trades: dict[str, str], kept: bool) -> None:
    assert (type(rule).__name__ not in failed(plan(rule), **trades)) == kept


def test_a_single_lot_too_many_fails() -> None:
    """Whole-lot plans hold to the last unit: with exactly enough cash it passes, one cent less fails."""
    exact = TABLE.copy()
    exact.loc["USD", "quantity"] = 20.7 * 1.001
    for cents, passes in ((0.0, True), (0.01, False)):
        table = exact.copy()
        table.loc["USD", "quantity"] = round(20.7207 - cents, 4)
        made = Rebalancer(costs=[ProportionalCost(0.001)], constraints=[LotSize("lot")], cash="USD").solve(table)
        assert ("CashFloor" not in failed(made, B="1")) == passes


def test_lots_and_minimum() -> None:
    assert failed(plan(), A="0.5") == {"LotSize"}
    assert failed(plan(), B="1") == set()  # exactly the minimum of 20.70
    small = TABLE.assign(price=[100.1, 20.69, 1.0])
    made = Rebalancer(constraints=[LotSize("lot", min_notional=20.7)], cash="USD").solve(small)
    assert failed(made, B="1") == {"LotSize"}
    assert failed(made, B="-30") == set()


def test_health_factor_value_and_limit() -> None:
    """(0.8·1001 + 0.5·621)/600 = 1.8522 with a loan of 600; selling 3 A brings it to 1.4518."""
    table = pd.concat([TABLE, TABLE.loc[["USD"]].rename(index={"USD": "loan"}).assign(quantity=-600.0)])
    table["target"] = [0.5, 0.5, 0.3, -0.3]
    made = Rebalancer(constraints=[HealthFactor(1.5, "threshold"), LotSize("lot")], cash="USD").solve(table)
    held = {c.rule: c for c in checked(made).checks if c.asset is None}
    sold = {c.rule: c for c in checked(made, A="-3").checks if c.asset is None}
    assert held["HealthFactor"].value == pytest.approx((0.8 * 1001 + 0.5 * 621) / 600, rel=1e-12)
    assert held["HealthFactor"].passed
    assert sold["HealthFactor"].value == pytest.approx((0.8 * 700.7 + 0.5 * 621) / 600, rel=1e-12)
    assert not sold["HealthFactor"].passed


def test_tracking_error_cone() -> None:
    """√(dᵀΣd) at held weights, by numpy; a limit just above passes, just below fails."""
    cov = pd.DataFrame([[0.04, 0.006], [0.006, 0.09]], index=["A", "B"], columns=["A", "B"])
    away = np.array([1001, 621]) / 2122 - 0.4
    error = float(np.sqrt(away @ cov.to_numpy() @ away))
    for limit, passes in ((error * (1 + 1e-6), True), (error * (1 - 1e-6), False)):
        made = Rebalancer(
            risk=CovarianceRisk(cov), constraints=[TrackingErrorLimit(limit), LotSize("lot")], cash="USD"
        ).solve(TABLE)
        assert ("TrackingErrorLimit" not in failed(made)) == passes


def test_no_orders_from_an_unverified_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the search comes up with: if the exact check fails, there are no orders and the rule is named."""
    from equipoise.optimizer.lots import alone as lots
    from equipoise.optimizer.lots import stacked as lot_stack

    real = lots.rounded

    def one_lot_more(*given: object, **options: object) -> object:
        from dataclasses import replace

        found, why = real(*given, **options)  # type: ignore[arg-type]
        assert found is not None
        return replace(found, quantities=(found.quantities[0] + 40, *found.quantities[1:])), why

    monkeypatch.setattr(lot_stack, "alone", lambda *given: lot_stack.Tried(None, counts=False))
    monkeypatch.setattr(lots, "rounded", one_lot_more)
    made = plan()
    assert made.status.name == "UNSOLVED"
    assert "CashFloor" in made.message
    assert made.orders.empty
    assert made.turnover == made.cost == 0.0


def test_checks_show_the_floats_nearest_to_the_exact_figures() -> None:
    """Of prices and quantities without a common denominator, a bound in binary, a turnover and a ratio over nothing."""
    table = pd.DataFrame(
        {
            "quantity": [Fraction(22, 7), Decimal("1e-9"), "0.1", 1000],
            "price": [Fraction(1, 3), 1e9, 0.1, 1],
            "target": [0.1, 0.1, 0.1, 0.7],
        },
        index=["A", "B", "C", "USD"],
        dtype=object,
    )
    rules = [DriftBand(absolute=0.3), Turnover(0.6), HealthFactor(1.5, threshold={"A": 0.8, "B": 0.5, "C": 0.1})]
    cost = ProportionalCost(0.001)
    problem = Rebalancer(costs=[cost], constraints=rules, cash="USD").problem(table)
    trades = [Fraction(10, 11), Fraction("0.12345678901234567e-6"), Fraction(-1, 10), Fraction(0)]
    result = verify(problem, trades, whole_lots=False)
    price = [Fraction(1, 3), Fraction(10**9), Fraction(1, 10), Fraction(1)]
    held = [Fraction(22, 7), Fraction(1, 10**9), Fraction(1, 10), Fraction(1000)]
    traded = [x * p for x, p in zip(trades, price, strict=True)]
    value = [q * p + x for q, p, x in zip(held, price, traded, strict=True)]
    nav = sum(q * p for q, p in zip(held, price, strict=True))
    paid = sum(map(abs, traded)) / 1000
    value[3] -= sum(traded) + paid
    assert (result.nav, result.cost, result.cash) == (nav, paid, value[3])
    assert result.weights.tolist() == [float(v / nav) for v in value]
    shown = {(c.rule, c.asset): c for c in result.checks}
    for i, asset in enumerate("ABC"):
        low, high = (Fraction(float(side[i])) for side in (problem.lower, problem.upper))
        found = shown["DriftBand", asset]
        assert found.value == float(value[i] / nav)
        assert found.slack == float(min(value[i] / nav - low, high - value[i] / nav))
    size = [float(c) for c in (problem.rows.buy[0, 0], problem.rows.sell[0, 0])]
    turnover = sum(Fraction(size[x < 0]) * abs(x) for x in traded[:3]) / nav
    assert shown["Turnover", None].slack == float(Fraction(0.6) - turnover)
    assert shown["HealthFactor", None].value == np.inf
    assert result.passed
