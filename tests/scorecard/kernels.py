"""The same orders on every processor: accounts solved under other kernels, threads, orders, chunks and workers.

What the numerical libraries choose by the processor (OpenBLAS its kernels, numpy its loops) is chosen when they are
loaded, so that every variant runs in a process of its own, on inputs that are handed to it as they are.

Whole-lot orders must be the same, all others within 1e-9 of NAV; what a portfolio ends with, too.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from processors import kernels, plain_loops, threads
from strategies import CONES, ENVELOPES, RULES, instance

from equipoise import Rebalancer
from equipoise.constraints import CashBand, DriftBand, GroupLimit, LongOnly, LotSize, OrderLimit, Rule, Turnover
from equipoise.optimizer import CovarianceRisk, FactorRisk, FixedFee, ProportionalCost
from equipoise.optimizer.problem.costs import Cost
from scorecard.figure import Result, Row, counted

CASH, NAV = "USD", 1e6
CONVEX = 1e-9  # of NAV
SEED = 10
PLAIN = tuple(name for name in RULES if name not in ("custom", *CONES, *ENVELOPES))
QUICK = 60  # accounts up to which variants are put together, so that a few processes do


@dataclass(frozen=True)
class Variant:
    """How the same accounts are solved: what is set in the environment, and what is asked of the batch."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    compiled: bool = False
    shuffled: bool = False
    alone: bool = False


class Ended(NamedTuple):
    """What a portfolio ended with; of each order the quantity, and its part of NAV, sales negative."""

    status: str
    whole: bool
    orders: dict[str, tuple[float, float]]


def variants(quick: bool) -> list[Variant]:
    """The first is what the others are compared with."""
    own = kernels() or [""]
    cores = [{"OPENBLAS_CORETYPE": name} for name in own]
    plain = plain_loops(sys.executable)
    if quick:
        old = Variant("oldest kernel, shuffled", cores[0] | plain, shuffled=True)
        new = Variant("newest kernel, two threads, chunks, machine code", cores[-1] | threads(2), {"chunk": 7}, True)
        return [Variant("as it is"), old, new]
    of_kernels = [Variant(f"kernel {name}", core) for name, core in zip(own, cores, strict=True)]
    return [
        Variant("as it is"),
        *of_kernels,
        Variant("plain loops of numpy", plain),
        Variant("two threads", threads(2)),
        Variant("machine code", compiled=True),
        Variant("shuffled", shuffled=True),
        Variant("chunks", options={"chunk": 7}),
        Variant("two workers", options={"chunk": 7, "executor": 2}),
        Variant("one by one", alone=True),
    ]


@dataclass(frozen=True)
class Group:
    """Accounts of one policy: the risk as plain arrays, which each process factors itself."""

    settings: dict[str, Any]
    risk: dict[str, Any]
    table: pd.DataFrame

    def rebalancer(self, compiled: bool) -> Rebalancer:
        model = FactorRisk if "loadings" in self.risk else CovarianceRisk
        risk = model(**self.risk) if self.risk else None
        return Rebalancer(cash=CASH, risk=risk, compiled=compiled, **self.settings)


def risk_of(rng: np.random.Generator, names: list[str], dense: bool) -> dict[str, Any]:
    n, k = len(names), 5
    loadings, specific = rng.normal(0.0, 0.08, (k, n)), rng.uniform(0.1, 0.3, n) ** 2
    loadings[0] += 0.15
    if not dense:
        return {"loadings": loadings, "specific_variance": specific, "assets": names}
    returns = rng.normal(size=(4 * n, n)) * np.sqrt(specific / (4 * n))
    matrix = sum(np.multiply.outer(row, row) for row in (*returns, *loadings))
    return {"cov": matrix, "assets": names}


def stacked_group(rng: np.random.Generator, accounts: int, number: int) -> Group:
    """Drifted accounts in coarse or fine lots, with a minimum order or none, or without lots.

    Stacks take them, but for some with fees and limits on orders.
    """
    n = int(rng.choice([4, 8, 15, 30, 60]))
    names = [f"S{i:03d}" for i in range(n)]
    kind = rng.choice(["coarse", "fine", "none"], p=[0.45, 0.4, 0.15])
    minimum = float(rng.choice([0.0, 0.005]))
    share = rng.uniform(1e-3, 1.2e-2, n) if kind == "coarse" else rng.uniform(1e-5, 5e-4, n)
    price = np.round(share * NAV / 100, 2)
    tables = []
    for i in range(accounts):
        target = np.round(0.98 * rng.dirichlet(np.full(n, 5.0)), 6)
        drifted = target * rng.uniform(0.7, 1.4, n)
        quantity = 100 * np.floor(0.98 * drifted / drifted.sum() * NAV / price / 100)
        tables.append(
            pd.DataFrame(
                {
                    "portfolio_id": f"{number:04d}-{i:03d}",
                    "asset": [*names, CASH],
                    "quantity": [*quantity, round(NAV - float((quantity * price).sum()), 2)],
                    "price": [*price, 1.0],
                    "target": [*target, 1.0 - target.sum()],
                    "lot": [100.0] * n + [0.0],
                    "sector": [*(f"sector {g}" for g in rng.integers(0, 3, n)), None],
                }
            )
        )
    rules: list[Rule] = [LongOnly()]
    rules += [LotSize("lot", min_notional=minimum * NAV)] if kind != "none" else []
    rules += [Turnover(float(rng.uniform(0.05, 0.3)))] if rng.random() < 0.3 else []
    rules += [DriftBand(relative=0.3, absolute=0.05)] if rng.random() < 0.3 else []
    rules += [CashBand(0.0, 0.05)] if rng.random() < 0.3 else []
    rules += [GroupLimit("sector", upper=0.6)] if rng.random() < 0.3 and n > 8 else []
    costs: list[Cost] = [ProportionalCost(0.001)]
    counts = kind != "none" and n <= 15 and rng.random() < 0.3  # what is searched one by one
    costs += [FixedFee(5.0)] if counts else []
    rules += [OrderLimit(max(3, n // 2))] if counts and rng.random() < 0.5 else []
    settings = {"costs": costs, "constraints": rules, "aversion": float(rng.choice([2.0, 10.0]))}
    return Group(settings, risk_of(rng, names, rng.random() < 0.6), pd.concat(tables, ignore_index=True))


def mixed_group(rng: np.random.Generator, number: int) -> Group:
    """One account with rules of every kind, mostly in lots."""
    made = instance(rng, risk=None, among=tuple(RULES) if number % 8 == 1 else PLAIN)
    rules = list(made.policy.constraints)
    if not any(isinstance(rule, LotSize) for rule in rules) and rng.random() < 0.75:
        rules.append(LotSize("lot", min_notional="min_notional"))
    names = sorted(asset for asset in made.table.index if asset != CASH)
    settings = {
        "costs": made.policy.costs,
        "constraints": rules,
        "aversion": made.policy.aversion,
        "horizon": made.policy.horizon,
    }
    table = made.table.reset_index().assign(portfolio_id=f"{number:04d}-mixed")
    return Group(settings, risk_of(rng, names, rng.random() < 0.6), table)


def groups(count: int, seed: int = SEED) -> list[Group]:
    """About this many accounts: a third with rules of every kind, and two that stacks mostly take."""
    mixed = [mixed_group(np.random.default_rng([seed, number]), number) for number in range(count // 3)]
    stacked = [stacked_group(np.random.default_rng([seed, number]), 8, number) for number in range(count // 12)]
    return mixed + stacked


def solved(group: Group, variant: Variant) -> dict[str, Ended]:
    """What each portfolio ends with, however long it takes: where a clock ends, the machine has a say."""
    rebalancer, table = group.rebalancer(variant.compiled), group.table
    if variant.shuffled:
        ids = np.random.default_rng(1).permutation(table["portfolio_id"].unique())
        table = pd.concat([table[table["portfolio_id"] == name].iloc[::-1] for name in ids], ignore_index=True)
    nav = (table["quantity"] * table["price"]).groupby(table["portfolio_id"]).sum()
    whole = any(isinstance(rule, LotSize) for rule in group.settings["constraints"])
    found: dict[str, Ended] = {}
    if variant.alone:
        for name, rows in table.groupby("portfolio_id", sort=False):
            plan = rebalancer.solve(rows.drop(columns="portfolio_id").set_index("asset"), time_limit=None)
            found[str(name)] = Ended(plan.status.name, whole, _orders(plan.orders, nav[name]))
        return found
    plans = rebalancer.solve_batch(table, time_limit=None, **variant.options)
    orders = plans.orders.reset_index().groupby("portfolio_id")
    for name, status in plans.results["status"].items():
        mine = orders.get_group(name).set_index("asset") if name in orders.groups else None
        found[str(name)] = Ended(status, whole, _orders(mine, nav[name]))
    return found


def _orders(orders: pd.DataFrame | None, nav: float) -> dict[str, tuple[float, float]]:
    if orders is None:
        return {}
    sign = np.where(orders["side"] == "buy", 1.0, -1.0)
    pairs = zip(orders["quantity"], sign * orders["quantity"] * orders["price"] / nav, strict=True)
    return {str(asset): (float(one), float(part)) for asset, (one, part) in zip(orders.index, pairs, strict=True)}


def apart(one: Ended, other: Ended) -> str:
    """In what two variants differ, in words; empty if they do not."""
    if one.status != other.status:
        return f"{one.status}, {other.status}"
    parts = {asset: (one.orders.get(asset, (0.0, 0.0)), other.orders.get(asset, (0.0, 0.0))) for asset in one.orders}
    parts |= {asset: ((0.0, 0.0), order) for asset, order in other.orders.items() if asset not in parts}
    allowed = 0.0 if one.whole else CONVEX
    moved = {asset: abs(a[1] - b[1]) for asset, (a, b) in parts.items() if not one.whole or a[0] != b[0]}
    far = {asset: by for asset, by in moved.items() if by > allowed}
    return ", ".join(f"{asset} by {by:.1e} of NAV" for asset, by in far.items())


def here(variant: Variant, given: list[Group]) -> dict[str, Ended]:
    return {name: ended for group in given for name, ended in solved(group, variant).items()}


def elsewhere(variant: Variant, given: list[Group]) -> dict[str, Ended]:
    """The same in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder, "inputs"), Path(folder, "outputs")
        inputs.write_bytes(pickle.dumps((variant, given)))
        tests = Path(__file__).resolve().parents[1]
        chosen = os.environ | threads(1) | variant.environment | {"PYTHONPATH": str(tests), "PYTHONWARNINGS": "ignore"}
        subprocess.run([sys.executable, "-m", "scorecard.kernels", inputs, outputs], check=True, env=chosen)
        found: dict[str, Ended] = pickle.loads(outputs.read_bytes())
    return found


def differing(count: int) -> Result:
    given = groups(count)
    first, *others = variants(count <= QUICK)
    wanted, missed, tried = here(first, given), [], 0
    for variant in others:
        found = elsewhere(variant, given)
        tried += len(wanted)
        missed += [f"{variant.name}: {name}: {how}" for name, one in wanted.items() if (how := apart(one, found[name]))]
    return counted(missed, tried)


ROWS = [
    Row(
        10,
        "accounts whose orders differ with order, chunks, workers, threads, kernels, machine code or numpy",
        "0 (convex: 1e-9 of NAV)",
        differing,
        quick=24,
        full=1000,
    )
]


def main() -> None:
    inputs, outputs = (Path(argument) for argument in sys.argv[1:])
    variant, given = pickle.loads(inputs.read_bytes())
    outputs.write_bytes(pickle.dumps(here(variant, given)))


if __name__ == "__main__":
    # Under the name by which the pickled variants know it.
    from scorecard.kernels import main as run_by_name

    run_by_name()
