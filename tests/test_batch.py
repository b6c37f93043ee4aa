"""`solve_batch` on stacks: the plans of one by one; bad input costs its own portfolio; options change nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from equipoise import InputError, Rebalancer, Status
from equipoise.constraints import Custom, DriftBand, GroupLimit, LongOnly, LotSize, TrackingErrorLimit, Turnover
from equipoise.optimizer import FactorRisk, ProportionalCost

SHARES = [f"S{i:02d}" for i in range(12)]


def accounts(count: int, seed: int = 0, held: int = 8) -> pd.DataFrame:
    """Portfolios of `held` out of twelve shares, each with its own, and cash."""
    rng = np.random.default_rng(seed)
    parts = []
    for i in range(count):
        shares = sorted(rng.choice(SHARES, held, replace=False))
        goal = np.round(rng.dirichlet(np.full(held, 4.0)) * 0.97, 6)
        now = goal * np.exp(0.2 * rng.normal(size=held))
        now *= rng.uniform(0.93, 0.99) / now.sum()
        nav = 10.0 ** rng.uniform(4, 6)
        price = np.round(rng.uniform(5, 200, held), 2)
        parts.append(
            pd.DataFrame(
                {
                    "portfolio_id": f"P{i:03d}",
                    "asset": [*shares, "USD"],
                    "quantity": [*np.round(now * nav / price, 4), np.round((1 - now.sum()) * nav, 2)],
                    "price": [*price, 1.0],
                    "target": [*goal, 1 - goal.sum()],
                    "side": [*("ab"[int(share[1:]) % 2] for share in shares), None],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def rebalancer(*rules: Any) -> Rebalancer:
    rng = np.random.default_rng(99)
    loadings = pd.DataFrame(rng.normal(0, 0.15, (3, 12)), columns=SHARES)
    risk = FactorRisk(loadings, pd.Series(rng.uniform(0.1, 0.3, 12) ** 2, SHARES))
    return Rebalancer(cash="USD", risk=risk, costs=[ProportionalCost(0.001)], constraints=[LongOnly(), *rules])


RULES = {
    "bands": (DriftBand(relative=0.25),),
    "rows": (DriftBand(relative=0.3), Turnover(0.09), GroupLimit("side", upper=0.6)),
    "a cone": (TrackingErrorLimit(0.02), Turnover(0.12)),
    "a custom rule": (Custom(lambda t: t.weights[0] <= 0.9),),
    "lots": (LotSize(1.0), DriftBand(relative=0.5)),
}


@pytest.mark.parametrize("name", list(RULES))
def test_a_batch_is_its_portfolios_one_by_one(name: str) -> None:
    table, one = accounts(6), rebalancer(*RULES[name])
    plans = one.solve_batch(table)
    for portfolio, rows in table.groupby("portfolio_id"):
        alone = one.solve(rows.drop(columns="portfolio_id"), name=portfolio)
        found = plans.results.loc[portfolio]
        assert found["status"] == alone.status.name
        if not alone.status.ok:
            assert found["message"] == alone.message
            continue
        assert found["verified"]
        assert found["objective"] == pytest.approx(alone.objective, rel=1e-9, abs=1e-15)
        assert found["bound"] == pytest.approx(alone.bound, rel=1e-9, abs=1e-13)
        assert found["cost"] == pytest.approx(alone.cost, rel=1e-9)
        orders = plans.orders.loc[portfolio] if found["orders"] else alone.orders
        pd.testing.assert_frame_equal(
            orders.drop(columns="reason").rename_axis(index="asset"),
            alone.orders.drop(columns="reason"),
            check_dtype=False,
            check_index_type=False,
            check_column_type=False,
            rtol=1e-7,
        )
        again = plans[portfolio]
        assert again.status is alone.status
        assert again.objective == pytest.approx(found["objective"], rel=1e-9, abs=1e-15)


def test_every_kind_of_end_in_one_batch_in_the_order_of_the_input() -> None:
    table = accounts(9)
    table.loc[table["portfolio_id"] == "P002", "price"] = -1.0
    table.loc[(table["portfolio_id"] == "P004") & (table["asset"] != "USD"), "quantity"] *= 40.0  # out of every band
    table = table.sample(frac=1.0, random_state=3)
    order = table["portfolio_id"].drop_duplicates().tolist()
    one = rebalancer(DriftBand(relative=0.25), Turnover(0.12))
    plans = one.solve_batch(table)
    assert plans.results.index.tolist() == order == [plan.name for plan in plans]
    assert plans.results.loc["P002", "status"] == "INVALID_INPUT"
    assert "P002" in plans.results.loc["P002", "message"]
    ended = plans.results["status"]
    assert set(ended) >= {"OPTIMAL", "INVALID_INPUT"}
    calm = one.solve_batch(accounts(9))
    fine = [name for name in order if name not in ("P002", "P004")]
    pd.testing.assert_frame_equal(plans.results.loc[fine], calm.results.loc[fine], check_exact=True)


def test_orders_and_results_add_up() -> None:
    table = accounts(40, seed=4)
    plans = rebalancer(DriftBand(relative=0.2)).solve_batch(table)
    orders = plans.orders.reset_index()
    assert orders.groupby("portfolio_id").size().reindex(plans.results.index, fill_value=0).tolist() == (
        plans.results["orders"].tolist()
    )
    costs = orders.groupby("portfolio_id")["cost"].sum().reindex(plans.results.index, fill_value=0.0)
    assert costs.to_numpy() == pytest.approx(plans.results["cost"].to_numpy(), rel=1e-12)
    # What is held after the orders, from the table alone: no cash below zero, no band left.
    held = table.set_index(["portfolio_id", "asset"])
    signed = plans.orders["quantity"] * np.where(plans.orders["side"] == "buy", 1.0, -1.0)
    after = held["quantity"].add(signed.rename_axis(index=["portfolio_id", "asset"]), fill_value=0.0) * held["price"]
    nav = (held["quantity"] * held["price"]).groupby("portfolio_id").sum()
    cash = after.xs("USD", level="asset") - signed.mul(plans.orders["price"]).groupby("portfolio_id").sum() - costs
    assert (cash[plans.results["verified"]] >= -1e-9 * nav).all()
    weights = after / nav.reindex(after.index, level="portfolio_id")
    shares = weights.index.get_level_values("asset") != "USD"
    away = (weights / held["target"] - 1.0).abs()[shares]
    kept = plans.results["verified"].reindex(away.index, level="portfolio_id")
    assert (away[kept] <= 0.2 + 1e-6).all()


def test_options_change_no_bit() -> None:
    table, one = accounts(30, seed=6), rebalancer(DriftBand(relative=0.25), Turnover(0.1))
    whole = one.solve_batch(table)
    parts = one.solve_batch(table, chunk=70)
    pd.testing.assert_frame_equal(
        whole.results, parts.results, check_exact=True, check_dtype=False, check_index_type=False
    )
    assert whole.orders["quantity"].tolist() == parts.orders["quantity"].tolist()
    assert parts["P003"].objective == whole.results.loc["P003", "objective"]
    assert len(parts) == 30
    streamed = one.solve_batch(iter([table]), universe=SHARES)
    assert streamed.results["objective"].tolist() == whole.results["objective"].tolist()
    with pytest.raises(InputError, match="read once"):
        _ = streamed["P003"]


def test_holding_is_said_to_be_best() -> None:
    table = accounts(3)
    table["quantity"] = table["target"] * 1e5 / table["price"]
    plans = rebalancer(DriftBand(relative=0.25)).solve_batch(table)
    assert plans.results["status"].tolist() == [Status.NO_TRADE.name] * 3
    assert len(plans.orders) == 0
    assert plans["P001"].status is Status.NO_TRADE


def test_whole_lots_that_are_best_held_are_no_trade_as_they_are_alone() -> None:
    table = pd.DataFrame(
        {"quantity": [5.0, 500.0], "price": [100.0, 1.0], "target": [0.53, 0.47], "lot": [1.0, 0.0]},
        index=pd.Index(["A", "USD"], name="asset"),
    )
    rebalancer = Rebalancer(cash="USD", constraints=[LongOnly(), LotSize("lot")])
    together = rebalancer.solve_batch(table.reset_index().assign(portfolio_id="one"))
    assert together.results.loc["one", "status"] == rebalancer.solve(table).status.name == "NO_TRADE"
    assert together["one"].status.name == "NO_TRADE"
