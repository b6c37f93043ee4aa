"""Who gains from rounding: residuals by hand, their intervals, and whole lots that add up over a batch."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from equipoise import InputError, Rebalancer
from equipoise.constraints import DriftBand, LongOnly, LotSize
from equipoise.optimizer import ProportionalCost
from equipoise.optimizer.plans.rounding_bias import Residuals, summary

CASH = "USD"


def one_plan() -> pd.DataFrame:
    """3.4 shares of A are too many, 2.6 of B and 0.5 of C too few; there is cash for all."""
    rows = [("A", 13.4, 10.0, 0.10), ("B", 7.4, 10.0, 0.10), ("C", 9.5, 10.0, 0.10), (CASH, 697.0, 1.0, 0.70)]
    return pd.DataFrame(rows, columns=["asset", "quantity", "price", "target"]).set_index("asset")


def test_residuals_by_hand() -> None:
    """Sales of 3 for 3.4; buys of 3 for 2.6, and of 0 or 1 for 0.5."""
    plan = Rebalancer(cash=CASH, constraints=[LongOnly(), LotSize(1.0)]).solve(one_plan())
    assert plan.orders["quantity"].drop("C", errors="ignore").to_dict() == {"A": 3.0, "B": 3.0}
    c = float(plan.orders["quantity"].get("C", 0.0)) - 0.5
    found = plan.rounding
    assert found["number"].to_dict() == {"buy": 2, "sell": 1}
    assert found.loc["sell", "lots"] == pytest.approx(-0.4) and found.loc["sell", "money"] == pytest.approx(-4.0)
    assert found.loc["buy", "lots"] == pytest.approx((0.4 + c) / 2)
    assert found.loc["buy", "money_total"] == pytest.approx(10 * (0.4 + c))
    s = abs(0.4 - c) / np.sqrt(2) / np.sqrt(2)  # the standard deviation of two, over √2
    assert found.loc["buy", "lots_high"] - found.loc["buy", "lots"] == pytest.approx(1.96 * s)
    assert np.isnan(found.loc["sell", "lots_low"])
    assert Rebalancer(cash=CASH).solve(one_plan()).rounding["number"].tolist() == [0, 0]


@pytest.mark.parametrize(("way", "buy", "sell"), [("down", -0.5, -0.5), ("nearest", 0.0, 0.0), ("to cash", -0.5, 0.5)])
def test_flooring_has_a_mean_of_minus_a_half_and_nearest_of_none(way: str, buy: float, sell: float) -> None:
    rng = np.random.default_rng(1)
    convex = rng.normal(scale=300.0, size=(200, 30))
    lot, price = np.full(convex.shape, 10.0), rng.uniform(5, 50, convex.shape)
    exactly = convex / lot
    rounded = {"down": np.trunc(exactly), "nearest": np.round(exactly), "to cash": np.floor(exactly)}[way]
    cash = np.arange(200), np.full(200, 29)
    table = summary([Residuals.of(np.arange(200), lot, price, convex, rounded * lot, cash)], clusters=True)
    for side, mean in (("buy", buy), ("sell", sell)):
        row = table.loc[side]
        assert abs(row["lots"] - mean) <= 4 / np.sqrt(12 * row["number"])
        assert row["lots_high"] - row["lots_low"] == pytest.approx(3.92 / np.sqrt(12 * row["number"]), rel=0.15)
    assert table["number"].sum() == 200 * 29


def test_residuals_of_a_portfolio_count_as_one() -> None:
    """Ten times the same residual in each portfolio is not ten times the evidence: the formula written out."""
    mine = np.repeat(np.random.default_rng(2).normal(size=40), 10)
    group = np.repeat(np.arange(40), 10)
    found = Residuals(group, np.ones(400, dtype=bool), mine, mine)
    row = summary([found], clusters=True).loc["buy"]
    means = mine[::10]
    assert row["lots_high"] - row["lots"] == pytest.approx(1.96 * means.std(ddof=1) / np.sqrt(40))
    alone = summary([found], clusters=False).loc["buy"]
    assert alone["lots_high"] - alone["lots"] == pytest.approx(1.96 * mine.std(ddof=1) / np.sqrt(400))


# --- allocation over a batch ----------------------------------------------------------------------------------


def batch(count: int, cash: float, seed: int = 3) -> pd.DataFrame:
    """Accounts of the same ten shares, with this part of their money in cash, wanted and held."""
    rng, parts = np.random.default_rng(seed), []
    price = np.round(rng.uniform(20, 200, 10), 2)
    for i in range(count):
        goal = np.round(rng.dirichlet(np.full(10, 5.0)) * (1 - cash), 4)
        now = goal * np.exp(0.3 * rng.normal(size=10))
        shares = np.floor(now / now.sum() * (1 - cash) * 20_000 / price)
        left = round(20_000 - float(shares @ price), 2)
        parts.append(
            pd.DataFrame(
                {
                    "portfolio_id": f"P{i:03d}",
                    "asset": [*(f"S{j}" for j in range(10)), CASH],
                    "quantity": [*shares, left],
                    "price": [*price, 1.0],
                    "target": [*goal, 1 - goal.sum()],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


RULES = [LongOnly(), DriftBand(relative=0.5), LotSize(1.0)]


def error(plans: object, away: list[float] | None = None) -> dict[str, float]:
    """Whole-lot less convex trades, in units, summed over the accounts."""
    total: dict[str, float] = {}
    away = [] if away is None else away
    for plan in plans:  # type: ignore[attr-defined]
        convex = (
            (plan.solution.weights - plan.problem.before) * plan.problem.portfolio.nav / plan.problem.portfolio.price
        )
        for asset, traded, wanted in zip(plan.problem.assets, plan.trades, convex, strict=True):
            if asset != CASH:
                total[asset] = total.get(asset, 0.0) + float(traded) - wanted
                away.append(abs(float(traded) - wanted))
    return total


def test_trades_add_up_within_a_lot_where_there_is_cash() -> None:
    one, table = Rebalancer(cash=CASH, costs=[ProportionalCost(0.001)], constraints=RULES), batch(60, 0.1)
    own, fair = one.solve_batch(table), one.solve_batch(table, allocate="unbiased")
    assert fair.results["verified"].all()
    away: list[float] = []
    errors = error(fair, away)
    assert max(away) < 1 + 1e-6  # nobody is further than a lot from the own convex trade for the others' sake
    assert max(map(abs, errors.values())) <= 0.5 + 1e-6
    assert max(map(abs, error(own).values())) > 1.5
    assert (fair.results["bound"] == own.results["bound"]).all()
    assert (fair.results["objective"] >= fair.results["bound"]).all()
    for side in ("buy", "sell"):
        row = fair.rounding.loc[side]
        assert row["lots_low"] - 0.05 <= 0 <= row["lots_high"] + 0.05


def test_no_rule_is_broken_for_it_where_there_is_none() -> None:
    """With all money invested the cash floor keeps accounts from buying their share; the error goes on."""
    one, table = Rebalancer(cash=CASH, costs=[ProportionalCost(0.001)], constraints=RULES), batch(60, 0.0)
    own, fair = one.solve_batch(table), one.solve_batch(table, allocate="unbiased")
    assert fair.results["verified"].all()
    for plan in fair:
        assert plan.verified is not None and plan.verified.passed and plan.verified.cash >= 0
    size = lambda found: sum(abs(x) for x in found.values())  # noqa: E731
    assert size(error(fair)) < 0.5 * size(error(own))


def test_accounts_that_go_alone_count_too() -> None:
    """A third account cannot be stacked (a number of many digits): the others make good what it leaves."""
    one, table = Rebalancer(cash=CASH, costs=[ProportionalCost(0.001)], constraints=RULES), batch(9, 0.1)
    table.loc[(table["portfolio_id"] == "P002") & (table["asset"] == "S4"), "quantity"] += 1 / 3
    fair = one.solve_batch(table, allocate="unbiased")
    assert max(map(abs, error(fair).values())) <= 0.5 + 1e-6
    again = one.solve_batch(table.sample(frac=1.0, random_state=2), allocate="unbiased")
    assert max(map(abs, error(again).values())) <= 1.0 + 1e-6


def test_it_is_a_pass_over_the_whole_batch() -> None:
    one, table = Rebalancer(cash=CASH, constraints=RULES), batch(4, 0.1)
    for options in ({"chunk": 20}, {"executor": 1}, {"progress": False}):
        with pytest.raises(InputError, match="whole batch"):
            one.solve_batch(table, allocate="unbiased", **options)
    with pytest.raises(InputError, match="'own' or 'unbiased'"):
        one.solve_batch(table, allocate="fair")
    with pytest.raises(InputError, match="whole batch"):
        one.stream(table, allocate="unbiased")
    with pytest.raises(InputError, match="residuals"):
        _ = one.solve_batch(table, chunk=20).rounding
    assert one.solve_batch(table, chunk=20, allocate="own").results["verified"].all()
