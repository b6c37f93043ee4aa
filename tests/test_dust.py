"""Orders that are only what rounding left of a limit are none, and no gap is below zero."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest

from equipoise import Rebalancer
from equipoise.constraints import CashBand, CashFloor, LongOnly, Rule, Turnover, WeightBounds
from equipoise.optimizer.problem.costs import ProportionalCost
from equipoise.optimizer.problem.dust import DUST
from equipoise.optimizer.problem.solution import rounded_down

COMPILED = [False, pytest.param(True, marks=pytest.mark.skipif(find_spec("numba") is None, reason="needs numba"))]


def books(count: int, n: int, rng: np.random.Generator, *, at_target: bool) -> pd.DataFrame:
    """Books with odd quantities and prices; `weight` is what is held, to the last bit that a float has."""
    assets = [*(f"A{i}" for i in range(n)), "USD"]
    tables = []
    for k in range(count):
        quantity = np.append(rng.uniform(1, 1000, n), rng.uniform(1, 500))
        price = np.append(rng.uniform(0.1, 300, n), 1.0)
        weight = quantity * price / np.sum(quantity * price)
        target = weight if at_target else weight * rng.uniform(0.8, 1.2, n + 1)
        columns = {"quantity": quantity, "price": price, "target": target / target.sum(), "weight": weight}
        tables.append(pd.DataFrame(columns | {"portfolio_id": f"P{k:02}", "asset": assets}))
    return pd.concat(tables)


def rules(kind: str, table: pd.DataFrame) -> list[Rule]:
    cash = float(table.weight[table.asset == "USD"].item())
    return {
        "cash band": [CashBand(cash, cash)],
        "long, cash band": [CashBand(cash, cash), LongOnly()],
        "turnover": [CashFloor(cash), Turnover(0.05)],
        "floors": [WeightBounds(lower="weight")],
    }[kind]


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("kind", ["cash band", "long, cash band", "turnover", "floors"])
@pytest.mark.parametrize("at_target", [True, False])
def test_no_dust_and_no_gap_below_zero(kind: str, at_target: bool, compiled: bool) -> None:
    """At limits that what is held is at but for rounding: no order below any use, alone or stacked."""
    rng = np.random.default_rng(5)
    for name, table in books(6, 7, rng, at_target=at_target).groupby("portfolio_id"):
        rebalancer = Rebalancer(
            cash="USD", constraints=rules(kind, table), costs=[ProportionalCost(0.001)], compiled=compiled
        )
        batch = rebalancer.solve_batch(table)
        plan = rebalancer.solve(table.drop(columns="portfolio_id"))
        nav = float((table.quantity * table.price).sum())
        for orders, gap in ((plan.orders, plan.gap), (batch.orders, batch.results.gap.item())):
            assert gap >= 0
            assert (orders.notional >= DUST * nav).all()
        assert batch.results.status[name] == plan.status.name
        assert len(batch.orders) == len(plan.orders)
        if at_target:
            assert (plan.status.name, plan.solver) == ("NO_TRADE", "holding")
            assert plan.message == batch.results.message[name] == ""


def test_dust_over_several_accounts() -> None:
    """Two accounts whose cashes are pinned where they are but for rounding."""
    table = pd.DataFrame(
        {
            "account": ["x", "x", "y", "y"],
            "asset": ["BTC", "USD", "BTC", "USD"],
            "quantity": [0.1, 1234.567, 0.3, 765.4321],
            "price": [61234.5, 1.0, 61234.5, 1.0],
        }
    )
    weight = (table.quantity * table.price / (table.quantity * table.price).sum()).to_numpy()
    table["target"] = weight / weight.sum()
    rebalancer = Rebalancer(
        cash={"x": "USD", "y": "USD"},
        constraints=[CashBand(weight[1], weight[1], account="x"), CashBand(weight[3], weight[3], account="y")],
    )
    plan = rebalancer.solve(table)
    assert plan.status.ok
    assert plan.orders.empty
    assert plan.gap >= 0


def test_dust_that_an_exact_limit_needs_is_traded() -> None:
    """A short position next to nothing breaks a limit of 0, however small: it is closed, and so the check passes."""
    table = pd.DataFrame(
        {"quantity": [-1e-9, 50.0, 50.0], "price": 1.0, "target": [0.0, 0.5, 0.5]},
        index=pd.Index(["A", "B", "USD"], name="asset"),
    )
    plan = Rebalancer(cash="USD", constraints=[LongOnly()]).solve(table)
    assert plan.status.ok
    assert plan.orders.quantity.to_dict() == {"A": 1e-9}
    batch = Rebalancer(cash="USD", constraints=[LongOnly()]).solve_batch(table.reset_index().assign(portfolio_id="P"))
    assert batch.orders.quantity.tolist() == [1e-9]
    kept = Rebalancer(cash="USD").solve(table.assign(quantity=[1e-9, 50.0, 50.0]))
    assert kept.orders.empty  # a holding of it may stay, whatever its target


def test_a_bound_is_rounded_down_but_a_false_one_stays() -> None:
    objective, bound = np.array([1.0, 1.0, 0.0, 0.0]), np.array([0.9, 1.0 + 1e-15, 1e-11, 1e-3])
    assert rounded_down(objective, bound).tolist() == [0.9, 1.0, 0.0, 1e-3]
