"""Whole lots and safe sequences of portfolios in several accounts."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
from accounts_cases import CASHES, COINS, Case, random_case
from test_accounts import BORROW, BRIDGE, REPAY, SUPPLY, WITHDRAW, health, rebalancer, table

from equipoise import Plan, Rebalancer, Status
from equipoise.constraints import CashBand, LotSize, NoTrade, WeightBounds
from equipoise.optimizer import sequenced


def with_lots(case: Case) -> tuple[Rebalancer, pd.DataFrame]:
    policy, trades = case.rebalancer.policy, case.table["fee"] > 0
    lot = np.where(trades, np.where(case.table["underlying"] == "BTC", 0.01, 0.1), 0.0)
    rows = case.table.assign(lot=lot, least=np.where(trades, 10.0, 0.0))
    made = Rebalancer(
        cash=CASHES,
        risk=policy.risk,
        costs=policy.costs,
        constraints=[*policy.constraints, LotSize("lot", min_notional="least")],
        aversion=policy.aversion,
        horizon=policy.horizon,
        transfers=policy.transfers,
    )
    return made, rows


@pytest.mark.parametrize("seed", [2, 5, 11])
def test_whole_lots(seed: int) -> None:
    case = random_case(np.random.default_rng(seed))
    made, rows = with_lots(case)
    plan = made.solve(rows)
    assert plan.status.ok and plan.verified is not None, plan.message
    lots = dict(zip(case.labels, rows["lot"], strict=True))
    closed = plan.weights["after"].abs() < 1e-12
    for asset, order in plan.orders.iterrows():
        if lots[asset] and not closed[asset]:
            assert (Fraction(str(order["quantity"])) / Fraction(str(lots[asset]))).denominator == 1
            assert order["notional"] >= 10
    free = case.rebalancer.solve(case.table)
    assert plan.solution is not None and free.objective <= plan.objective + 1e-12
    assert plan.bound <= free.objective + 1e-9
    assert plan.objective - free.objective < 1e-3 * free.objective


@pytest.mark.parametrize("lot", [0.3, 0.7, 1.0])
def test_lots_by_trying_every_number_of_them(lot: float) -> None:
    """One coin is traded, at no cost: what is best is found by moving the quantities by hand."""
    rules = [health(1.7), CashBand(0.0, 5.0)]
    plan = rebalancer([*rules, LotSize("lot")], [SUPPLY, WITHDRAW])
    rows = table().assign(lot=[0.0, lot, 0.0, 0.0, 0.0])
    found = plan.solve(rows)
    assert found.status.ok, found.message
    tried = []
    for k in range(-10, 3):
        moved = table(exchange__ETH=2.0 + k * lot, exchange__USDT=1000.0 - 1000.0 * k * lot)
        if (moved["quantity"].drop(("aave", "USDC owed")) >= 0).all():
            one = rebalancer([*rules, NoTrade(["exchange/ETH"])], [SUPPLY, WITHDRAW]).solve(moved)
            if one.status.ok:
                tried.append(one.objective)
    assert found.objective == pytest.approx(min(tried), abs=1e-9)


# Sequences ------------------------------------------------------------------------------------------------------


def test_repaid_before_it_is_withdrawn() -> None:
    """HF 1.6 at its limit: the bridge first, then the repayment, then the collateral can leave."""
    rules = [health(1.6), WeightBounds(upper={"aave/ETH": 0.7}, assets=["aave/ETH"]), NoTrade(["exchange/ETH"])]
    plan = rebalancer(rules, [BRIDGE, REPAY, WITHDRAW, BORROW]).solve(table())
    assert plan.status is Status.OPTIMAL, plan.message
    sequence = sequenced(plan)
    assert sequence.safe, sequence.reason
    assert [step.asset for step in sequence.steps] == [
        "exchange/USDT -> wallet/USDC",
        "wallet/USDC -> aave/USDC owed",
        "aave/ETH -> exchange/ETH",
    ]
    assert {step.side for step in sequence.steps} == {"move"}
    assert sequence.steps[1].cash == pytest.approx(0.0, abs=1e-4)


def test_a_circle_has_no_sequence() -> None:
    """The loan is repaid out of the collateral that it holds: nothing can come first."""
    rules = [health(1.6), WeightBounds(lower={"aave/USDC owed": -0.2}, assets=["aave/USDC owed"])]
    plan = rebalancer(rules, [BRIDGE, REPAY, WITHDRAW]).solve(table(exchange__USDT=0.0, exchange__ETH=0.0))
    assert plan.status is Status.OPTIMAL, plan.message
    sequence = sequenced(plan)
    assert not sequence.safe and not sequence.steps
    assert "moving wallet/USDC -> aave/USDC owed would break CashFloor by 1,600.00" in sequence.reason
    assert sequence.proven and sequence.blocked_by is not None and sequence.short_by > 0


def test_a_flash_loan_breaks_the_circle() -> None:
    """1,600 repay the debt first, from the wallet; what the freed collateral is sold for flows back to it."""
    rules = [health(1.6), WeightBounds(lower={"aave/USDC owed": -0.2}, assets=["aave/USDC owed"])]
    made = rebalancer(rules, [BRIDGE, REPAY, WITHDRAW])
    plan = made.solve(table(exchange__USDT=0.0, exchange__ETH=0.0))
    least = sequenced(plan).temporary_cash
    repaid = float(plan.transfers.set_index("to")["value"]["aave/USDC owed"])
    assert least == pytest.approx(repaid, abs=1e-5)
    lent = sequenced(plan, temporary_cash=least)
    assert lent.safe and lent.whole
    assert [step.asset for step in lent.steps] == [
        "wallet/USDC -> aave/USDC owed",
        "aave/ETH -> exchange/ETH",
        "exchange/ETH",
        "exchange/USDT -> wallet/USDC",
    ]
    assert float(lent.steps[0].cash) == pytest.approx(-repaid, abs=1e-5)
    assert lent.temporary_cash == pytest.approx(repaid, abs=1e-5)
    # In smaller rounds less of it does; half of all, in no account, does not.
    sliced = sequenced(plan, temporary_cash=least / 8)
    assert sliced.safe and not sliced.whole and sliced.temporary_cash <= least / 8 + 1e-9
    assert not sequenced(plan, temporary_cash=least / 2, most_slices=1).safe


@pytest.mark.parametrize("seed", [0, 7, 15, 18, 19, 24, 30])
def test_partial_fills_are_safe(seed: int) -> None:
    """Any part of any step, by plain arithmetic: no cash below its floor, no rule broken that was not."""
    case = random_case(np.random.default_rng([7, seed]))
    plan = case.rebalancer.solve(case.table)
    sequence = sequenced(plan)
    assert sequence.safe, sequence.reason
    rng = np.random.default_rng(seed)
    state = _State(case, plan)
    worst = state.broken()
    for step in sequence.steps:
        for part in sorted(rng.random(4)):
            assert (state.after(step, part).broken() <= np.maximum(worst, 2e-9)).all()
        state = state.after(step, 1.0)
        worst = np.minimum(worst, np.maximum(state.broken(), 0.0))
    final = plan.weights["after"]
    np.testing.assert_allclose([state.value[a] / state.nav for a in final.index], final, atol=1e-9)


class _State:
    """Values by row, in floats; rules written by hand."""

    def __init__(self, case: Case, plan: Plan, value: dict[str, float] | None = None) -> None:
        self.case, self.plan = case, plan
        rows = case.table.set_index(pd.Index(case.labels))
        self.price = rows["price"]
        self.nav = float((rows["quantity"] * rows["price"]).sum())
        self.value = value or (rows["quantity"] * rows["price"]).to_dict()

    def after(self, step: Any, part: float) -> _State:
        value, size = dict(self.value), part * float(step.quantity)
        assert (
            self.plan.problem is not None and self.plan.problem.accounts is not None and self.plan.verified is not None
        )
        labels = self.plan.problem.portfolio.assets
        at = next(
            i
            for i, label in enumerate(labels)
            if self.plan.trades[i] and set(label.split(" -> ")) == set(step.asset.split(" -> "))
        )
        cost = float(self.plan.verified.costs[at]) * part * float(step.fraction)
        accounts = self.plan.problem.accounts
        payer = labels[accounts.cashes[int(np.argmax(accounts.budgets.pays[:, at]))]]
        if step.side == "move":
            source, destination = step.asset.split(" -> ")
            value[source] -= size * self.price[source]
            value[destination] += size * self.price[source]
        else:
            money = size * self.price[step.asset] * (1 if step.side == "buy" else -1)
            account = step.asset.split("/")[0]
            value[step.asset] += money
            value[f"{account}/{CASHES[account]}"] -= money
        value[payer] -= cost
        return _State(self.case, self.plan, value)

    def broken(self) -> np.ndarray:
        """The excess of every rule, in fractions of NAV."""
        v, case = self.value, self.case
        owed = -v["lending/USDC owed"]
        covered = sum(0.8 * v[f"lending/{coin}"] for coin in COINS)
        perps = [v[f"perps/{coin}"] for coin in COINS]
        equity = v["perps/USDC"] + sum(perps)
        floors = [case.floor * self.nav - v["exchange/USDT"], -v["wallet/USDC"]]
        held = [
            -x
            for label, x in v.items()
            if label.split("/")[0] in ("exchange", "wallet", "lending") and "owed" not in label
        ]
        rules = [case.health * owed - covered, 0.1 * sum(map(abs, perps)) - case.margin * equity, -owed]
        return np.array([*floors, *held, *rules]) / self.nav
