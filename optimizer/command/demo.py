"""`equipoise demo`: a tour on the real data that come with the package (see examples/data/README.md)."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.constraints import Turnover
from equipoise.optimizer.command.output import Document, batch_summary
from equipoise.optimizer.command.policy_file import load
from equipoise.optimizer.plans.report import clean, table
from equipoise.optimizer.portfolio.portfolio import read_table
from equipoise.optimizer.problem.solution import Status
from equipoise.optimizer.rebalancer import Rebalancer

if TYPE_CHECKING:
    from equipoise.optimizer.batches.solve import Plans
    from equipoise.optimizer.plans.plan import Plan

#: Enough accounts to measure a rate, few enough not to wait for.
ACCOUNTS = 200


def demo(*, everything: bool = False) -> Document:
    """Print the tour and return its summary. `everything`: all accounts of the batch."""
    data, start = Path(str(files("equipoise.data"))), time.perf_counter()
    treasury = _treasury(data)
    equity = _equity(data)
    batch = batch_summary(_batch(data, everything))
    verified = treasury.status.ok and equity.status.ok and batch["verified"] == batch["portfolios"]
    seconds = time.perf_counter() - start
    print(f"All of this in {seconds:.0f} s. The same from the shell: equipoise solve treasury.csv --policy")
    print(f"treasury.toml --out DIR, in {data}")
    return {
        "status": "verified" if verified else "incomplete",
        "treasury": treasury.status.name,
        "equity": equity.status.name,
        "batch": {key: batch[key] for key in ("portfolios", "verified", "statuses", "orders")},
    }


def _treasury(data: Path) -> Plan:
    _title("1. A crypto treasury with a loan, after the crash of 2021-05-19")
    print("The coins have fallen and the loan has not: the health factor is 1.29, and the policy asks for 1.6.")
    holdings, policy = read_table(data / "treasury.csv"), load(data / "treasury.toml").rebalancer
    print(f"Is it time to trade? {policy.due(holdings)}\n")
    plan = policy.solve(holdings)
    print(plan)
    print("\nThe same account with less and less trading allowed:\n")
    rows = [["turnover at most", "turnover", "health factor", "tracking error", "cost", "orders", ""]]
    for limit in (0.3, 0.1, 0.07):
        capped = _capped(policy, limit).solve(holdings)
        health = dict(zip(capped.checks["rule"], capped.checks["value"], strict=True)).get("HealthFactor", math.nan)
        figures = [f"{capped.turnover:.1%}", f"{health:.2f}", f"{capped.tracking_error[1]:.2%}", f"{capped.cost:,.0f}"]
        rows.append([f"{limit:.0%}", *figures, str(len(capped.orders)), capped.status.name])
    print("\n".join(table(rows)))
    print("\nWith 5 % there is no way to keep all rules. The answer is then no orders, and the reason:\n")
    print(f"  {_capped(policy, 0.05).solve(holdings).message}")
    return plan


def _capped(policy: Rebalancer, limit: float) -> Rebalancer:
    """The same policy with another turnover limit."""
    given = policy.policy
    rules = [replace(rule, limit=limit) if isinstance(rule, Turnover) else rule for rule in given.constraints]
    return Rebalancer(
        cash=policy.cash,
        risk=given.risk,
        costs=given.costs,
        constraints=rules,
        aversion=given.aversion,
        horizon=given.horizon,
    )


def _equity(data: Path) -> Plan:
    _title("2. 28 stocks on 2008-10-10, in whole shares, with the spreads of that month")
    plan = load(data / "equity.toml").rebalancer.solve(read_table(data / "equity.csv"))
    rows = [["order", "", "price", "notional", "cost", "reason"]]
    for asset, order in plan.orders.iterrows():
        figures = [f"{order['price']:,.2f}", f"{order['notional']:,.2f}", f"{order['cost']:,.2f}", order["reason"]]
        rows.append([f"{order['side']} {order['quantity']:,.0f}", clean(asset), *figures])
    print("\n".join(table(rows, left=2)))
    # What stands below the table of assets.
    print(f"\n{str(plan).rsplit(chr(10) * 2, 1)[1]}")
    return plan


def _batch(data: Path, everything: bool) -> Plans:
    accounts, equity = read_table(data / "accounts.csv"), read_table(data / "equity.csv")
    # Prices, targets and spreads are the same for all accounts; only the quantities are their own.
    accounts = accounts.join(equity.drop(columns="quantity"), on="asset")
    names = accounts["portfolio_id"].unique()
    if not everything:
        accounts = accounts[accounts["portfolio_id"].isin(names[:ACCOUNTS])]
    policy = load(data / "equity.toml").rebalancer
    start = time.perf_counter()
    plans = policy.solve_batch(accounts)
    seconds = time.perf_counter() - start
    shown = "all" if everything else f"the first {len(plans):,} of"
    _title(f"3. The same policy for {shown} {len(names):,} accounts around that portfolio")
    summary = batch_summary(plans)
    rows = [[f"{count:,} accounts", Status[name].value] for name, count in summary["statuses"].items()]
    rows.append([f"{len(plans) / seconds:,.0f} a second", f"in this run ({seconds:.1f} s, one process)"])
    rows.append(
        [f"{summary['orders']:,} orders", f"over {summary['notional']:,.0f} USD; they cost {summary['cost']:,.0f}"]
    )
    worst = f"{1e4 * summary['worst_gap']:.2g} bp of NAV a year"
    rows.append(["certified", f"no account is further than {worst} from its best possible plan"])
    print("\n".join(table(rows)) + "\n")
    return plans


def _title(text: str) -> None:
    print(f"\n{text}\n{'=' * len(text)}\n")
