"""Random portfolios in several accounts, and the same request written a second time as a plain flow network in cvxpy.

`random_case` plants nothing: some requests cannot be kept, and both sides must say so. `network` knows nothing of the
library: positions, buys and sales, amounts sent along each edge in each direction, and one balance for each cash.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from equipoise import Rebalancer
from equipoise.constraints import (
    Account,
    CashFloor,
    HealthFactor,
    InitialMargin,
    LongOnly,
    Parts,
    Piece,
    Row,
    Rule,
    ShortOnly,
    Turnover,
    WeightBounds,
)
from equipoise.optimizer import CovarianceRisk, HoldingCost, ProportionalCost, QuadraticCost, Transfer, sequenced

COINS = ("BTC", "ETH")
PRICE = {"BTC": 40_000.0, "ETH": 2_500.0, "USD": 1.0}
CASHES = {"exchange": "USDT", "wallet": "USDC", "perps": "USDC"}
DEBTS, PERPS = ["lending/USDC owed"], ["perps/BTC", "perps/ETH"]


@dataclass(frozen=True)
class In(Rule):
    """A rule on one account's rows alone."""

    account: str = ""
    rule: Any = None

    def pieces(self, account: Account) -> Sequence[Piece]:
        own = np.array([label == self.account for label in account.labels("account")])

        def only(parts: Any) -> dict[str, Any]:
            return {k: np.where(own, c, 0.0) for k in Parts.NAMES if (c := getattr(parts, k)) is not None}

        rows = [piece for piece in self.rule.pieces(account) if isinstance(piece, Row)]
        return [
            replace(
                row, **only(row), per=row.per and replace(row.per, **only(row.per)), label=f"{self.account} {row.label}"
            )
            for row in rows
        ]


@dataclass(frozen=True)
class Case:
    """One request: the table by label, the library's question, and the numbers that the network is written from."""

    table: pd.DataFrame
    rebalancer: Rebalancer
    covariance: pd.DataFrame
    health: float
    margin: float
    turnover: float | None
    most: float
    floor: float

    @property
    def labels(self) -> list[str]:
        return [f"{a}/{b}" for a, b in zip(self.table["account"], self.table["asset"], strict=True)]


def random_case(rng: np.random.Generator, *, nav: float = 1e6, calm: bool = False) -> Case:
    """`calm`: without what can make it infeasible."""
    scale = nav / 1e6

    def some(low: float, high: float) -> float:
        return float(np.round(rng.uniform(low, high), 6)) * scale

    value = {
        ("exchange", "USDT"): some(5e4, 3e5),
        **{("exchange", coin): some(0, 3e5) for coin in COINS},
        ("wallet", "USDC"): some(0, 1e5),
        **{("wallet", coin): some(0, 1e5) * (rng.random() < 0.5) for coin in COINS},
        **{("lending", coin): some(1e5, 4e5) for coin in COINS},
        ("lending", "USDC owed"): -some(5e4, 2e5),
        ("perps", "USDC"): some(5e4, 2e5),
        **{("perps", coin): some(-1e5, 1e5) for coin in COINS},
    }
    table = pd.DataFrame([(*key, x) for key, x in value.items()], columns=["account", "asset", "value"])
    table["underlying"] = [asset if asset in COINS else "USD" for asset in table["asset"]]
    table["price"] = table["underlying"].map(PRICE)
    table["quantity"] = table["value"] / table["price"]
    total = float(table["quantity"] @ table["price"])
    wanted = {"BTC": rng.uniform(0.1, 0.5), "ETH": rng.uniform(0.1, 0.4)}
    table["target"] = 0.0
    for coin, weight in wanted.items():  # at one of its rows, whichever
        rows = table.index[table["underlying"] == coin]
        table.loc[rng.choice(rows), "target"] = round(weight, 6)
    table.loc[0, "target"] = 1.0 - table["target"].sum()
    trades = (table["account"] != "lending") & ~table["asset"].str.contains("USD")
    table["fee"] = np.where(trades, np.round(rng.uniform(1e-4, 3e-3, len(table)), 6), 0.0)
    table["slope"] = np.where(trades, np.round(rng.uniform(0, 0.02, len(table)), 6), 0.0)
    table["threshold"] = np.where(table["account"] == "lending", np.where(table["underlying"] == "USD", 0.0, 0.8), 0.0)
    table["margin"] = np.where(table["account"] == "perps", np.where(table["underlying"] == "USD", 0.0, 0.1), 0.0)
    table["rate"] = np.where(table["asset"] == "USDC owed", 0.05, 0.0)
    table = table.drop(columns="value").iloc[rng.permutation(len(table))].reset_index(drop=True)

    volatility, rho = rng.uniform(0.4, 1.0, 2), rng.uniform(0.2, 0.9)
    matrix = np.array([[1.0, rho], [rho, 1.0]]) * np.outer(volatility, volatility)
    covariance = pd.DataFrame(matrix, COINS, COINS)

    def cost() -> float:
        return float(np.round(rng.uniform(0, 2e-3), 6)) if rng.random() < 0.8 else 0.0

    transfers = [
        Transfer("exchange/USDT", "wallet/USDC", cost=cost(), two_way=bool(rng.random() < 0.7)),
        Transfer("exchange/USDT", "perps/USDC", cost=cost(), two_way=True),
        *(Transfer(f"exchange/{coin}", f"wallet/{coin}", cost=cost(), two_way=True) for coin in COINS),
        *(Transfer(f"wallet/{coin}", f"lending/{coin}", cost=cost()) for coin in COINS),
        *(Transfer(f"lending/{coin}", f"wallet/{coin}", cost=cost(), paid_by="exchange") for coin in COINS),
        Transfer("lending/USDC owed", "wallet/USDC", cost=cost(), limit=some(0, 1e5)),
        Transfer("wallet/USDC", "lending/USDC owed", cost=cost()),
    ]
    transfers = [transfers[i] for i in rng.permutation(len(transfers)) if rng.random() < 0.9]
    health = 1.0 if calm else float(np.round(rng.uniform(1.2, 4.0), 3))
    margin = 1.0 if calm else float(np.round(rng.uniform(0.2, 1.0), 3))
    turnover = None if calm or rng.random() < 0.5 else float(np.round(rng.uniform(0.02, 0.5), 3))
    most, floor = float(np.round(rng.uniform(0.4, 0.6), 3)), 0.0 if calm else float(np.round(rng.uniform(0, 0.05), 3))
    rules: list[Rule] = [
        LongOnly(except_=[*DEBTS, *PERPS]),
        ShortOnly(DEBTS),
        In(account="lending", rule=HealthFactor(health, "threshold")),
        In(account="perps", rule=InitialMargin("margin", utilisation=margin)),
        CashFloor(-5.0, account="perps"),
        CashFloor(floor),
        WeightBounds(upper={"lending/BTC": most}, assets=["lending/BTC"]),
    ]
    if turnover is not None:
        rules.append(Turnover(turnover))
    rebalancer = Rebalancer(
        cash=CASHES,
        risk=CovarianceRisk(covariance, riskless=["USD"]),
        costs=[ProportionalCost("fee"), QuadraticCost("slope"), HoldingCost(short="rate")],
        constraints=rules,
        aversion=float(rng.uniform(1, 10)),
        horizon=float(rng.uniform(0.1, 1)),
        transfers=transfers,
    )
    assert total > 0
    return Case(table, rebalancer, covariance, health, margin, turnover, most, floor)


def network(case: Case) -> tuple[str, float, dict[str, float]]:
    """(status, objective, positions after costs): the request as amounts along the edges of a network."""
    import cvxpy as cp

    table, policy = case.table.set_index(pd.Index(case.labels)), case.rebalancer.policy
    nav = float(table["quantity"] @ table["price"])
    start = (table["quantity"] * table["price"] / nav).to_dict()
    cash = {account: f"{account}/{asset}" for account, asset in CASHES.items()}
    rows = [label for label in table.index if label not in cash.values()]
    buy = {i: cp.Variable(nonneg=True) for i in rows}
    sell = {i: cp.Variable(nonneg=True) for i in rows}
    there = [cp.Variable(nonneg=True) for _ in policy.transfers]
    back = [cp.Variable(nonneg=True) for _ in policy.transfers]
    kept: list[Any] = []
    sent: dict[str, Any] = dict.fromkeys(table.index, 0.0)
    fees: dict[str, Any] = dict.fromkeys(CASHES, 0.0)
    moved: Any = 0.0
    for transfer, go, come in zip(policy.transfers, there, back, strict=True):
        sent[transfer.source] = sent[transfer.source] - go + come
        sent[transfer.destination] = sent[transfer.destination] + go - come
        if not transfer.two_way:
            kept.append(come == 0)
        most = transfer.limit * float(table.loc[transfer.source, "price"]) / nav
        if np.isfinite(most):
            kept += [go <= most, come <= most]
        ends = (table.loc[transfer.source, "account"], table.loc[transfer.destination, "account"])
        for amount, order in ((go, ends), (come, ends[::-1])):  # the account that it leaves, else that it reaches
            payer = transfer.paid_by or next((a for a in order if a in CASHES), "exchange")
            fees[payer] = fees[payer] + transfer.cost * amount
        moved += go + come
    after: dict[str, Any] = {}
    for i in rows:
        account = table.loc[i, "account"]
        after[i] = start[i] + buy[i] - sell[i] + sent[i]
        if account in CASHES:
            fees[account] = fees[account] + table.loc[i, "fee"] * (buy[i] + sell[i])
            fees[account] = fees[account] + table.loc[i, "slope"] * cp.square(buy[i] + sell[i])
        else:
            kept += [buy[i] == 0, sell[i] == 0]
    paid = {account: cp.Variable(nonneg=True) for account in CASHES}
    for account, label in cash.items():
        spent = sum(buy[i] - sell[i] for i in rows if table.loc[i, "account"] == account)
        after[label] = start[label] - spent + sent[label]  # before costs
        kept.append(fees[account] <= paid[account])
    owed = -after["lending/USDC owed"]
    covered = sum(0.8 * after[f"lending/{coin}"] for coin in COINS)
    perps = [after[f"perps/{coin}"] for coin in COINS]
    equity = after["perps/USDC"] - paid["perps"] + sum(perps)
    kept += [
        *(after[i] >= 0 for i in rows if i not in (*DEBTS, *PERPS)),
        owed >= 0,
        covered >= case.health * owed,
        0.1 * sum(cp.abs(x) for x in perps) <= case.margin * equity,
        after["exchange/USDT"] - paid["exchange"] >= case.floor,
        after["wallet/USDC"] - paid["wallet"] >= 0,
        after["perps/USDC"] - paid["perps"] >= -5,
        after["lending/BTC"] <= case.most,
    ]
    if case.turnover is not None:
        kept.append(0.5 * sum(buy[i] + sell[i] for i in rows) <= case.turnover)
    away = cp.hstack(
        [
            sum(after[i] for i in table.index if table.loc[i, "underlying"] == coin)
            - float(table.loc[table["underlying"] == coin, "target"].sum())
            for coin in COINS
        ]
    )
    root = np.linalg.cholesky(case.covariance.loc[list(COINS), list(COINS)].to_numpy()).T
    objective = (
        0.5 * policy.aversion * cp.sum_squares(root @ away)
        + sum(paid.values()) / policy.horizon
        + 0.05 * owed
        + 1e-6 * moved
    )
    problem = cp.Problem(cp.Minimize(objective), kept)
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12, max_iter=300)
    if problem.value is None or not np.isfinite(problem.value):
        return str(problem.status), np.nan, {}
    final = {i: float(x.value) for i, x in after.items()}
    for account, label in cash.items():
        final[label] -= float(paid[account].value)
    return str(problem.status), float(problem.value), final


def main() -> None:
    """`python tests/accounts_cases.py --count 1000`: the library against the network, and which solver answered."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000)
    count, solvers, worst, wrong = parser.parse_args().count, Counter[str](), 0.0, 0
    warnings.simplefilter("ignore")
    safe, sequences = 0, 0
    for seed in range(count):
        case = random_case(np.random.default_rng([1, seed]))
        plan = case.rebalancer.solve(case.table)
        status, objective, _ = network(case)
        solvers[f"{plan.status.name} by {plan.solver}"] += 1
        if plan.status.ok:
            worst = max(worst, abs(plan.objective - objective))
            sequences, safe = sequences + 1, safe + sequenced(plan).safe
        wrong += plan.status.ok == ("infeasible" in status) or plan.status.name == "UNSOLVED"
    print(f"{count} random portfolios in four accounts")
    print(f"largest difference of the objectives {worst:.1e}, other disagreements {wrong}")
    print(f"safe sequences for {safe} of {sequences} plans")
    for name, number in sorted(solvers.items()):
        print(f"  {number:5d} {name}")


if __name__ == "__main__":
    main()
