"""The order in which orders are listed: replayed in fractions, one after the other and in parts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest

from equipoise import Plan, Rebalancer
from equipoise.constraints import CashFloor, HealthFactor, InitialMargin, Leverage, LongOnly, ShortOnly
from equipoise.optimizer import ProportionalCost

GROSS, MARGIN, HEALTH = 2.0, 0.25, 1.6


def leveraged(rng: np.random.Generator, name: str) -> pd.DataFrame:
    """A long-short book near its gross leverage and initial margin, some with cash owed."""
    n = 6
    held = np.round(rng.normal(0.0, 0.45, n), 3)
    target = np.round(rng.normal(0.0, 0.45, n), 3)
    held, target = (x * min(1.0, 0.97 * GROSS / np.abs(x).sum()) for x in (held, target))
    price = np.round(np.exp(rng.normal(3.0, 1.0, n)), 2)
    table = pd.DataFrame(
        {"quantity": np.round(held * 1e6 / price), "price": price, "target": target, "fee": 0.001},
        index=pd.Index([f"A{i}" for i in range(n)], name="asset"),
    )
    table.loc["USD"] = [1e6 - float((table["quantity"] * price).sum()), 1.0, 1.0 - float(target.sum()), 0.0]
    return table.reset_index().assign(portfolio_id=name)


def lending(rng: np.random.Generator, name: str) -> pd.DataFrame:
    """Collateral and a debt near the health factor, with little cash."""
    held, target = np.array([0.9, 0.7, -0.65, 0.05]), np.array([0.8, 0.6, -0.45, 0.05])
    held[:2] += rng.uniform(-0.1, 0.1, 2)
    target[:2] += rng.uniform(-0.1, 0.1, 2)
    target[2] += rng.uniform(-0.1, 0.1)
    held[3], target[3] = 1.0 - held[:3].sum(), 1.0 - target[:3].sum()
    rows = [(a, q, 1.0, t, c, 0.001) for a, q, t, c in zip(
        ("ETH", "BTC", "debt", "USD"), np.round(held * 1e6), target, (0.8, 0.75, 0.0, 0.0), strict=True)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["asset", "quantity", "price", "target", "threshold", "fee"])
    return table.assign(portfolio_id=name)


BOOK = Rebalancer(
    cash="USD",
    costs=[ProportionalCost("fee")],
    constraints=[Leverage(gross=GROSS), InitialMargin(MARGIN), CashFloor(-1.5)],
)
LOAN = Rebalancer(
    cash="USD",
    costs=[ProportionalCost("fee")],
    constraints=[HealthFactor(HEALTH, "threshold"), LongOnly(except_=["debt"]), ShortOnly(["debt"])],
)


def excess(kind: str, value: dict[str, Fraction], nav: Fraction) -> list[Fraction]:
    """By how much each rule is broken, in money, by its definition."""
    others = [v for a, v in value.items() if a != "USD"]
    if kind == "book":
        gross, equity = sum(map(abs, others)), sum(value.values())
        return [gross - 2 * nav, gross / 4 - equity, Fraction(-3, 2) * nav - value["USD"]]
    covered = Fraction(0.8) * value["ETH"] + Fraction(0.75) * value["BTC"]
    return [Fraction(HEALTH) * -value["debt"] - covered, -value["USD"]]


def wrong(kind: str, table: pd.DataFrame, orders: pd.DataFrame) -> Iterator[str]:
    """Where these orders, in their order, break a rule by more than the state before did."""
    price = {a: Fraction(repr(float(p))) for a, p in zip(table["asset"], table["price"], strict=True)}
    units = zip(table["asset"], table["quantity"], strict=True)
    value = {a: Fraction(repr(float(q))) * price[a] for a, q in units}
    nav = sum(value.values(), Fraction(0))
    for asset, side, quantity in zip(orders.index, orders["side"], orders["quantity"], strict=True):
        money = Fraction(repr(float(quantity))) * price[asset] * (1 if side == "buy" else -1)
        before = excess(kind, value, nav)
        for part in (Fraction(1, 7), Fraction(1, 2), Fraction(1)):
            after = dict(value)
            after[asset] += part * money
            after["USD"] -= part * (money + Fraction(1, 1000) * abs(money))
            for k, (x, was) in enumerate(zip(excess(kind, after, nav), before, strict=True)):
                if x > max(was, Fraction(2, 10**9) * nav):
                    yield f"{side} {asset}: rule {k} by {float(x):.6g}"
        value = after


@pytest.mark.parametrize(("kind", "made", "draw"), [("book", BOOK, leveraged), ("loan", LOAN, lending)])
def test_orders_are_listed_as_they_are_safe(kind: str, made: Rebalancer, draw: object) -> None:
    """Alone and in batches: what says "whole" is safe row by row; sales first, as it was, is not for most of them."""
    rng = np.random.default_rng(5)
    drawn = {f"{i:02d}": draw(rng, f"{i:02d}") for i in range(25)}  # type: ignore[operator]
    plans = made.solve_batch(pd.concat(drawn.values()))
    found = plans.results
    assert found["verified"].sum() >= 15
    whole, before = 0, 0
    for name, table in drawn.items():
        if not found.loc[name, "orders"]:
            assert found.loc[name, "listing"] == ""
            continue
        orders = plans.orders.loc[name]
        alone: Plan = made.solve(table.drop(columns="portfolio_id").set_index("asset"))
        if found.loc[name, "listing"] == "not searched":
            continue
        assert alone.listing == found.loc[name, "listing"]
        assert list(alone.orders.index) == list(orders.index)
        by_side = orders.sort_values(["side", "notional"], ascending=False, kind="stable")
        before += any(wrong(kind, table, by_side))
        if alone.listing == "whole":
            whole += 1
            assert not list(wrong(kind, table, orders))
        else:
            assert alone.listing == ("slices" if alone.sequence.safe else "none found")
            assert not alone.sequence.whole
    assert whole >= 5 and before >= 5, (whole, before)


def test_plain_portfolios_sell_first() -> None:
    table = pd.DataFrame(
        {"quantity": [60.0, 40.0, 0.0], "price": 1.0, "target": [0.2, 0.2, 0.6]}, index=["A", "B", "C"]
    )
    table.loc["USD"] = [0.0, 1.0, 0.0]
    plan = Rebalancer(cash="USD").solve(table)
    assert plan.listing == "whole" and list(plan.orders.index) == ["A", "B", "C"]
    assert "safe after each order" in str(plan)


def test_stacks_know_what_all_orders_of_the_orders_show() -> None:
    """Without any search: "whole" exactly where a permutation is safe, by trying all; else slices, or proven none."""
    rng = np.random.default_rng(11)
    drawn = {f"{i:02d}": lending(rng, f"{i:02d}") for i in range(60)}
    # At both limits at the end: no debt may be taken before it is covered, nothing bought before it is paid.
    for i in range(3):
        name = f"stuck {i}"
        drawn[name] = lending(np.random.default_rng(i), name).assign(
            quantity=[0.8e6, 0.6e6, -0.4e6, 0.0], target=[1.3, 0.95, -1.25, 0.0]
        )
    plans = LOAN.solve_batch(pd.concat(drawn.values()))
    found, orders = plans.results, plans.orders
    said = dict.fromkeys(("whole", "slices", "none found", "not searched"), 0)
    for name, table in drawn.items():
        if not (found.loc[name, "orders"] and found.loc[name, "listing"]):
            continue
        listing = found.loc[name, "listing"]
        said[listing] += 1
        if listing == "not searched":
            continue
        own = orders.loc[name]
        safe = any(not list(wrong("loan", table, own.loc[list(way)])) for way in itertools.permutations(own.index))
        assert (listing == "whole") == safe, name
        if listing != "whole":
            assert plans[name].sequence.safe == (listing == "slices"), name
    assert said["whole"] >= 20 and said["slices"] >= 1 and said["none found"] >= 3, said
    assert said["not searched"] <= 6


def test_a_plan_that_says_whole_has_a_sequence_of_whole_orders() -> None:
    """Also where the search prefers to close positions before it opens others."""
    rng = np.random.default_rng(7)
    plans = BOOK.solve_batch(pd.concat(leveraged(rng, f"{i:02d}") for i in range(12)))
    whole = [name for name, listing in plans.results["listing"].items() if listing == "whole"]
    assert len(whole) >= 8
    assert all(plans[name].sequence.whole for name in whole)
