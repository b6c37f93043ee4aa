"""Fuzzed valid portfolios of every kind: plans that an independent check refuses, crashes, and other units of money.

Case k is the same in every run; the first ones are small, so that the suite is quick. Every tenth lies in several
accounts, every fifth is solved in a batch beside two others as well (but for searches over many orders).
"""

from __future__ import annotations

import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from closing_cases import misses as account_misses
from closing_cases import random_closing

from equipoise import InputError, Plan
from scorecard.figure import Result, Row, counted
from scorecard.fuzz_books import Books, misses
from scorecard.fuzz_cases import CASH, Case, random_case

_SMALL = 100  # so many cases are of at most _FEW assets
_FEW = 8
_LIMIT, _OVER = 5.0, 5.0  # seconds that are given, and processor seconds that a run may take beyond them
EXPONENTS = (-12, -6, 0, 3, 12)
SAME = 1e-9


@dataclass
class Runs:
    """What so many cases showed."""

    wrong: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)


def judged(case: Case, table: pd.DataFrame, plan: Plan) -> list[str]:
    """What is wrong with a plan that says it is one; with one that says it is none, only orders are."""
    if not plan.status.ok:
        found = [] if plan.orders.empty else ["orders without a plan"]
        if plan.status.name == "INFEASIBLE" and not misses(
            Books(table, CASH, case.planted, case.costs), case.judges, whole=case.whole
        ):
            found.append("called infeasible, but the planted point keeps every rule")
        return found
    assert plan.problem is not None
    trades = dict(zip(plan.problem.assets, plan.trades, strict=True))
    found = misses(Books(table, CASH, trades, case.costs), case.judges, whole=case.whole)
    if not (np.isfinite(plan.weights["after"]).all() and np.isfinite(plan.objective)):
        found.append("figures that are no numbers")
    sent = {
        a: (x if side == "buy" else -x)
        for a, side, x in zip(plan.orders.index, plan.orders["side"], plan.orders["quantity"], strict=True)
    }
    if sent != {a: float(x) for a, x in trades.items() if x and a != CASH}:
        found.append("orders that are not the trades")
    return found


def three(case: Case, rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    """The case's table, and two beside it that hold a little more or less of each asset."""
    tables = {"a": case.table}
    for name in "bc":
        factor = np.round(rng.uniform(0.98, 1.02, len(case.table)), 3)
        tables[name] = case.table.assign(
            quantity=[
                float(Fraction(repr(float(q))) * Fraction(repr(float(f))))
                for q, f in zip(case.table["quantity"], factor, strict=True)
            ]
        )
    return tables


@lru_cache
def runs(count: int) -> Runs:
    found = Runs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k in range(count):
            said = f"case {k}"
            try:
                said = _one(k, found)
            except Exception as error:  # every one is a miss, and the next case goes on
                where = traceback.extract_tb(error.__traceback__)[-1]
                kind = "refused" if isinstance(error, InputError) else "crashed"
                found.crashed.append(
                    f"{said}: {kind}: {error!r:.200} at {where.filename.rsplit('/', 1)[-1]}:{where.lineno}"
                )
    return found


def _one(k: int, found: Runs) -> str:
    rng = np.random.default_rng([2026, k])
    if k % 10 == 9:
        request = random_closing(rng)
        plan = request.rebalancer.solve(request.table)
        found.ended[plan.status.name] += 1
        found.wrong += [
            f"case {k} in accounts: {miss}" for miss in (account_misses(request, plan) if plan.status.ok else [])
        ]
        return ""
    case = random_case(rng, largest=_FEW if k < _SMALL else 200)
    ways: tuple[dict[str, Any], ...] = ({"effort": 0}, {}, {"exact": True, "time_limit": _LIMIT})
    options = ways[rng.choice(3, p=[0.7, 0.25, 0.05])] if case.whole else {}
    began = time.process_time()
    try:
        plan = case.rebalancer.solve(case.table, **options)
    except Exception as error:
        error.args = (f"{case.said}: {error}",)
        raise
    used = time.process_time() - began
    found.ended[plan.status.name] += 1
    if plan.status.name == "UNSOLVED":
        found.ended[f"UNSOLVED {k}: {plan.message[:150]}"] += 1
    found.wrong += [f"case {k} ({case.said}): {miss}" for miss in judged(case, case.table, plan)]
    if "exact" in options and used > _LIMIT + _OVER:
        found.crashed.append(f"case {k} ({case.said}): {used:.0f} s of a processor, {_LIMIT:.0f} s were given")
    if k % 5 == 4 and (not case.whole or len(case.table) < 20):
        tables = three(case, rng)
        long = pd.concat([t.reset_index().assign(portfolio_id=name) for name, t in tables.items()])
        plans = case.rebalancer.solve_batch(long)
        for name, table in tables.items():
            found.wrong += [
                f"case {k} in a batch, {name} ({case.said}): {miss}" for miss in judged(case, table, plans[name])
            ]
    return ""


def independent_check(count: int) -> Result:
    found = runs(count)
    result = counted(found.wrong, count)
    ended = ", ".join(f"{n} {status}" for status, n in sorted(found.ended.items()) if " " not in status)
    return Result(f"{result.said} ({ended})", result.kept, result.missed)


def crashes(count: int) -> Result:
    return counted(runs(count).crashed, count)


def any_money(count: int) -> Result:
    """Each problem at NAVs of 1e-12 to 1e12, lots and all amounts scaled with it, against a NAV of 1e6."""
    missed: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k in range(count):
            plans = {}
            for exponent in (6, *EXPONENTS):
                case = random_case(
                    np.random.default_rng([2027, k]), largest=_FEW if k < _SMALL else 60, exponent=exponent
                )
                plans[exponent] = case.rebalancer.solve(case.table)
            base = plans.pop(6)
            missed += [
                f"case {k} ({case.said}), nav 1e{e}: {miss}"
                for e, plan in plans.items()
                if (miss := _differs(base, plan, e, case.whole))
            ]
    return counted(missed, count)


def _differs(base: Plan, plan: Plan, exponent: int, whole: bool) -> str:
    if base.status is not plan.status:
        return f"{plan.status.name}, not {base.status.name}"
    if not base.status.ok:
        return ""
    if whole:
        scale = Fraction(10) ** (exponent - 6)
        if [float(x * scale) for x in base.trades] != [float(x) for x in plan.trades]:
            return "other orders"
    apart = float(np.abs(base.weights["after"] - plan.weights["after"]).max())
    if apart > SAME * max(1.0, float(base.weights["after"].abs().max())):
        return f"weights by {apart:.2g}"
    off = abs(base.objective - plan.objective)
    return f"objective by {off:.2g} of {base.objective:.2g}" if off > SAME * max(abs(base.objective), SAME) else ""


ROWS = [
    Row(
        1,
        "fuzzed valid portfolios: plans that fail an independent check in fractions",
        "0",
        independent_check,
        25,
        10_000,
    ),
    Row(2, "fuzzed valid portfolios: crashes, exceptions, runs over their limit", "0", crashes, 25, 10_000),
    Row(3, "one problem over NAV 1e-12 to 1e12: relative difference above 1e-9", "0", any_money, 4, 300),
]
