"""Random accounts of collateral, debts and perpetuals, each with a convex program of its own, written by hand.

`account(rng)` draws a table and rules that what is held keeps and what is wanted breaks; `reference(account)` solves
the same problem in cvxpy from the protocols' definitions, with none of the library's pieces: thresholds times
collateral, tiers as slices, CVaR by Rockafellar and Uryasev's program, counted collateral by its own linear program.

    python tests/random_accounts.py --count 1000

compares the two and counts who solved what.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from equipoise.constraints import (
    AfterMove,
    AfterScenarios,
    AfterShock,
    BorrowLimit,
    CashFloor,
    CollateralRatio,
    CVaR,
    GreekLimit,
    HealthFactor,
    InitialMargin,
    LoanToValue,
    LongOnly,
    MaintenanceMargin,
    Rule,
    SettledCash,
    ShortOnly,
    Turnover,
)
from equipoise.optimizer.portfolio.portfolio import Portfolio
from equipoise.optimizer.problem.costs import ProportionalCost
from equipoise.optimizer.problem.policy import Policy
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.risk.models import CovarianceRisk
from equipoise.optimizer.solvers.choose import solve

NAMES = ("health", "ltv", "borrow", "limited", "tiers", "initial", "shock", "scenarios", "cvar", "sigmas", "delta")
NAMES += ("settled", "turnover", "emode", "shocked tiers")


@dataclass(frozen=True, eq=False)
class Drawn:
    """A table (rows: collaterals, debts, two perpetuals, their quote balance, the cash), its rules and figures."""

    table: pd.DataFrame
    covariance: np.ndarray
    names: tuple[str, ...]
    figures: dict[str, Any]
    aversion: float = 5.0
    horizon: float = 0.5

    @property
    def collaterals(self) -> list[str]:
        return [a for a in self.table.index if a.startswith("lend/C")]

    @property
    def debts(self) -> list[str]:
        return [a for a in self.table.index if a.startswith("lend/D")]

    @property
    def perps(self) -> list[str]:
        return ["perps/A", "perps/B"]

    def rules(self) -> list[Rule]:
        f, lend, perps = self.figures, {"account": "lend"}, {"account": "perps"}
        health = HealthFactor(f["h"], "threshold", **lend)
        tiers = MaintenanceMargin(f["brackets"], utilisation=f["use"], **perps)
        made: dict[str, Rule] = {
            "health": HealthFactor(f["health"], "threshold", **lend),
            "ltv": LoanToValue(f["ltv"], **lend),
            "borrow": BorrowLimit("borrow", "threshold", at_least=1.05, **lend),
            "limited": CollateralRatio(f["limited"], "threshold", cap=f["cap"], share=f["share"], **lend),
            "tiers": tiers,
            "initial": InitialMargin("margin", utilisation=f["initial"], **perps),
            "shock": AfterShock(health, "fall", "rise"),
            "scenarios": AfterScenarios(health, f["moves"], {"s0": {"threshold": f["tuned"]}}),
            "cvar": CVaR(health, f["moves"], level=0.7),
            "sigmas": AfterMove(health, years=f["years"], sigmas=f["k"]),
            "delta": GreekLimit("price", upper=f["delta"], **perps),
            "settled": SettledCash(late=f["late"]),
            "turnover": Turnover(f["turnover"]),
            "emode": HealthFactor(f["in emode"], "threshold", emode="one", emodes={"one": f["emode"]}, **lend),
            "shocked tiers": AfterShock(tiers, 0.1, 0.1),
        }
        signs = [LongOnly(except_=[*self.debts, *self.perps, "perps/Q"]), ShortOnly(self.debts), CashFloor(0.0)]
        return [*signs, *(made[name] for name in self.names)]

    def problem(self) -> Problem:
        risky = [*self.collaterals, *self.debts, *self.perps]
        risk = CovarianceRisk(self.covariance, assets=risky, riskless=["perps/Q"])
        policy = Policy(risk, (ProportionalCost("fee"),), tuple(self.rules()), self.aversion, self.horizon)
        return policy.problem(Portfolio.from_table(self.table, "USD"))


def tier(notional: Any, pairs: Any, slice_of: Any) -> Any:
    """Σ rate · (the part of the notional in the bracket), as increments of the rate above each floor."""
    total, last = 0.0, 0.0
    for floor, rate in pairs:
        total = total + (rate - last) * slice_of(notional - floor)
        last = rate
    return total


def account(rng: np.random.Generator, names: tuple[str, ...] | None = None) -> Drawn:
    """A random account whose holdings keep its rules."""
    nc, nd = int(rng.integers(3, 9)), int(rng.integers(1, 4))
    labels = [*(f"lend/C{i}" for i in range(nc)), *(f"lend/D{i}" for i in range(nd)), "perps/A", "perps/B", "perps/Q"]

    def weights(debt: float, size: float) -> np.ndarray:
        held = rng.dirichlet(np.full(nc, 3.0)) * (0.7 + debt)
        owed = -rng.dirichlet(np.full(nd, 3.0)) * debt
        perps = np.array([size, -0.7 * size]) * rng.uniform(0.7, 1.3, 2)
        return np.round(np.concatenate([held, owed, perps, [0.2 - perps.sum()]]), 6)

    before, target = weights(rng.uniform(0.2, 0.35), 0.2), weights(rng.uniform(0.45, 0.7), 0.7)
    nav = float(10 ** rng.uniform(4, 7))
    n = len(labels)
    L = rng.normal(size=(nc + nd + 2, 4)) * 0.25 + 0.2
    L[nc : nc + nd] *= 0.3
    covariance = L @ L.T + np.diag(rng.uniform(0.005, 0.05, nc + nd + 2))
    threshold = np.where(np.arange(n) < nc, np.round(rng.uniform(0.6, 0.85, n), 3), 0.0)
    table = pd.DataFrame(
        {
            "quantity": np.append(before, 1 - before.sum()) * nav,
            "price": 1.0,
            "target": np.append(target, 1 - target.sum()),
            "threshold": [*threshold, 0.0],
            "borrow": [*(threshold - np.where(threshold > 0, 0.05, 0.0)), 0.0],
            "margin": [*np.where(np.arange(n) >= n - 3, 0.1, 0.0)[:-1], 0.0, 0.0],
            "fee": [*rng.uniform(2e-4, 2e-3, n - 1), 0.0, 0.0],
            "fall": [*rng.uniform(0.0, 0.1, nc), *np.zeros(n + 1 - nc)],
            "rise": [*np.zeros(nc), *rng.uniform(0.0, 0.1, nd), *np.zeros(n + 1 - nc - nd)],
            "account": ["lend"] * (nc + nd) + ["perps"] * 3 + [None],
        },
        index=[*labels, "USD"],
    )
    b = pd.Series(before, labels)
    held, owed = b[:nc].to_numpy(), -b[nc : nc + nd].to_numpy()
    t, debt = threshold[:nc], float(owed.sum())
    hf = float(t @ held) / debt
    h = max(0.86, 0.8 * hf)
    # A slice below each limit: what is held keeps it.
    moves = {
        f"s{s}": dict(
            zip(labels[: nc + nd], np.round(rng.normal(-0.02, 0.05, nc + nd).clip(-0.09, 0.09), 4), strict=True)
        )
        for s in range(10)
    }
    moves["s0"] = dict.fromkeys(labels[: nc + nd], -0.05)
    brackets = dict.fromkeys(
        ("perps/A", "perps/B"), ((0.0, 0.02), (0.15 * nav, 0.1), (0.3 * nav, 0.3), (0.5 * nav, 0.5))
    )
    size = b[["perps/A", "perps/B"]].abs().to_numpy()
    margin = sum(tier(x * nav, brackets["perps/A"], lambda y: max(y, 0.0)) / nav for x in size)
    share, cap = 0.6, {labels[0]: 0.5 * float(t[0] * held[0]) * nav}
    each = t * held
    each[0] *= 0.5
    counts = kept(each, share)
    x = np.concatenate([t * held, -h * owed])
    years = 0.01
    spread = float(np.sqrt(x @ covariance[: nc + nd, : nc + nd] @ x * years))
    emode = {labels[1]: 0.9}
    figures = {
        "health": 0.95 * hf if 0.95 * hf > 0.9 else 0.9,
        "h": h,
        "ltv": min(1.0, 1.1 * debt / held.sum()),
        "limited": max(0.86, 0.9 * counts / debt),
        "cap": cap,
        "share": share,
        "brackets": brackets,
        "use": 1.3 * margin / 0.2,
        "initial": 1.2 * 0.1 * size.sum() / 0.2,
        "moves": moves,
        "tuned": {a: float(v) - 0.02 for a, v in zip(labels[:nc], t, strict=True)},
        "years": years,
        "k": 0.9 * max(0.0, x.sum()) / spread,
        "delta": float(b[["perps/A", "perps/B"]].sum()) + 0.1,
        "late": {labels[0]: 1.0, labels[1]: 0.5},
        "turnover": 0.3,
        "emode": emode,
        "in emode": max(0.92, 0.95 * float(np.where(np.arange(nc) == 1, 0.9, t) @ held) / debt),
    }
    if names is None:
        names = tuple(sorted(rng.choice(NAMES, size=6, replace=False).tolist()))
    return Drawn(table, covariance, names, figures)


def kept(each: np.ndarray, share: float) -> float:
    """The most that counts with no kind above `share` of it, by sorting."""
    largest = np.sort(each)[::-1]
    return min(largest[m:].sum() / (1 - m * share) for m in range(len(each) + 1) if m * share < 1)


def reference(drawn: Drawn) -> tuple[np.ndarray | None, float]:
    """Weights and objective by a cvxpy program of its own."""
    import cvxpy as cp

    t, f = drawn.table, drawn.figures
    assets, nav = list(t.index), float(t.quantity @ t.price)
    before = (t.quantity * t.price).to_numpy() / nav
    at = {a: i for i, a in enumerate(assets)}
    C, D, P = ([at[a] for a in group] for group in (drawn.collaterals, drawn.debts, drawn.perps))
    Q, cash = at["perps/Q"], at["USD"]
    w, buy, sell = (
        cp.Variable(len(assets)),
        cp.Variable(len(assets), nonneg=True),
        cp.Variable(len(assets), nonneg=True),
    )
    fee = t.fee.to_numpy() @ (buy + sell)
    risky = [*C, *D, *P]
    L = np.linalg.cholesky(drawn.covariance)
    away = w[risky] - t.target.to_numpy()[risky]
    others = [i for i in range(len(assets)) if i != cash]
    rules = [cp.sum(w) == 1, w[others] == before[others] + buy[others] - sell[others], buy[cash] == 0, sell[cash] == 0]
    rules += [w[C] >= 0, w[D] <= 0, w[cash] - fee >= 0]
    lt, owed = t.threshold.to_numpy()[C], -cp.sum(w[D])
    equity = cp.sum(w[P]) + w[Q]
    h = f["h"]
    moves = np.array([[m[assets[i]] for i in [*C, *D]] for m in f["moves"].values()])
    losses = []
    for s, move in enumerate(moves):
        factor = np.array([f["tuned"][assets[i]] for i in C]) if s == 0 else lt
        losses.append(-h * ((1 + move[len(C) :]) @ w[D]) - (factor * (1 + move[: len(C)])) @ w[C])
    tails = [-h * ((1 + m[len(C) :]) @ w[D]) - (lt * (1 + m[: len(C)])) @ w[C] for m in moves]
    brackets = {a: [(floor / nav, rate) for floor, rate in pairs] for a, pairs in f["brackets"].items()}
    nocap = dict.fromkeys(drawn.collaterals, np.inf)

    def margin(price: float) -> Any:
        return sum(tier(price * cp.abs(w[i]), brackets[assets[i]], cp.pos) for i in P)

    for name in drawn.names:
        if name == "health":
            rules.append(lt @ w[C] >= f["health"] * owed)
        elif name == "emode":
            inside = np.array([f["emode"].get(assets[i], x) for i, x in zip(C, lt, strict=True)])
            rules.append(inside @ w[C] >= f["in emode"] * owed)
        elif name == "ltv":
            rules.append(owed <= f["ltv"] * cp.sum(w[C]))
        elif name == "borrow":
            rules += [t.borrow.to_numpy()[C] @ w[C] >= owed, lt @ w[C] >= 1.05 * owed]
        elif name == "limited":
            u = cp.Variable(len(C), nonneg=True)
            limits = np.array([{**nocap, **f["cap"]}[assets[i]] for i in C])
            finite = np.isfinite(limits)
            rules += [u <= cp.multiply(lt, w[C]), u[finite] <= limits[finite] / nav, u <= f["share"] * cp.sum(u)]
            rules.append(cp.sum(u) >= f["limited"] * owed)
        elif name == "tiers":
            rules.append(margin(1.0) <= f["use"] * equity)
        elif name == "shocked tiers":
            # Each position at the worse of its two ends; what the quote is worth moves like any row of the account.
            total = 0.0
            for i in P:
                pairs = brackets[assets[i]]
                ends = [tier(p * cp.abs(w[i]), pairs, cp.pos) - f["use"] * p * w[i] for p in (0.9, 1.1)]
                total += cp.maximum(*ends)
            total += cp.maximum(*(-f["use"] * p * w[Q] for p in (0.9, 1.1)))
            rules.append(total <= 0)
        elif name == "initial":
            rules.append(0.1 * cp.norm1(w[P]) <= f["initial"] * equity)
        elif name == "shock":
            fall, rise = t.fall.to_numpy()[C], t.rise.to_numpy()[D]
            rules.append((lt * (1 - fall)) @ w[C] + h * ((1 + rise) @ w[D]) >= 0)
        elif name == "scenarios":
            rules += [loss <= 0 for loss in losses]
        elif name == "cvar":
            alpha = cp.Variable()
            excess = cp.sum([cp.pos(loss - alpha) for loss in tails])
            rules.append(alpha + excess / (0.3 * len(tails)) <= 0)
        elif name == "sigmas":
            K = np.linalg.cholesky(drawn.covariance[: len(C) + len(D), : len(C) + len(D)])
            x = cp.hstack([cp.multiply(lt, w[C]), h * w[D]])
            rules.append(cp.sum(x) >= f["k"] * np.sqrt(f["years"]) * cp.norm(K.T @ x))
        elif name == "delta":
            rules.append(cp.sum(w[P]) + w[Q] <= f["delta"])
        elif name == "settled":
            late = sum(part * sell[at[a]] for a, part in f["late"].items())
            rules.append(w[cash] - fee - late >= 0)
        elif name == "turnover":
            rules.append(0.5 * cp.sum(buy + sell) <= f["turnover"])
    objective = 0.5 * drawn.aversion * cp.sum_squares(L.T @ away) + fee / drawn.horizon
    problem = cp.Problem(cp.Minimize(objective), rules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for accuracy in (1e-11, 1e-10, 1e-9, 1e-8):
            limits = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), accuracy)
            try:
                problem.solve(solver=cp.CLARABEL, max_iter=500, **limits)
            except cp.SolverError:
                continue
            if problem.status == cp.OPTIMAL:
                break
    if problem.status != cp.OPTIMAL:
        return None, np.nan
    order = [assets.index(a) for a in sorted(assets)]
    return np.asarray(w.value)[order], float(problem.value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    solvers: Counter[str] = Counter()
    worst, wrong, binding = 0.0, 0, 0
    for i in range(args.count):
        drawn = account(np.random.default_rng([args.seed, i]))
        problem = drawn.problem()
        answer = solve(problem)
        solvers[f"{answer.status.name} by {answer.solver}"] += 1
        theirs, objective = reference(drawn)
        if answer.weights is None or theirs is None:
            wrong += 1
            print(f"seed {i} {drawn.names}: {answer.status.name}, reference {objective}: {answer.explanation}")
            continue
        binding += answer.prices is not None and bool(np.any(answer.prices.rows > 1e-6))
        off = abs(answer.objective - objective)
        worst = max(worst, off)
        if off > 1e-7:
            wrong += 1
            print(f"seed {i} {drawn.names}: {answer.objective} against {objective}")
    for what, count in solvers.most_common():
        print(f"{count:6} {what}")
    print(
        f"{binding} with a rule that binds; largest difference of objectives {worst:.1e} of NAV a year; {wrong} wrong"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
