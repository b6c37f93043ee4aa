"""Accounts in which a whole-lot plan has next to no room: found wherever one is, and never said not to be.

As a command, `python tests/test_lot_margins.py 1000`, on as many accounts.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
from scorecard.planted_lots import planted
from test_lot_bound import brute_force, problem_of, small_case

from equipoise.optimizer.lots.feasibility import feasible
from equipoise.optimizer.lots.points.points import Lots
from equipoise.optimizer.lots.search.neighbours import Search
from equipoise.optimizer.solvers.choose import solve

MARGIN = 1e-6


def tight_case(seed: int) -> dict | None:
    """A small case whose rules leave a plan that was drawn a margin of 1e-6; None if the plan costs too much."""
    rng = np.random.default_rng([7, seed])
    case = small_case(seed) | {"tracking": None, "impact": float(rng.choice([0.0, 0.3]))}
    q, p, b = case["quantity"], case["price"], case["target"]
    nav = float(q @ p) + case["cash"]
    to_target = np.round((b * nav / p - q) / case["lot"])
    trades = (to_target + rng.integers(-2, 3, case["n"])) * case["lot"] * (rng.random(case["n"]) < 0.8)
    z, w = trades * p / nav, (q + trades) * p / nav
    case["fixed"] = float(rng.choice([0.0, 0.0, 2.0]))
    scale = case["impact"] * 0.02 * np.sqrt(nav / case["volume"])
    paid = (case["fee"] * np.abs(z) + scale * np.abs(z) ** 1.5).sum() + case["fixed"] * np.count_nonzero(z) / nav
    if case["cash"] / nav - z.sum() - paid < MARGIN:
        return None
    small = np.abs(trades) * p < case["min_notional"]
    case["min_notional"] = np.where((trades != 0) & small, 0.0, case["min_notional"])
    case["min_quantity"] = np.where((trades != 0) & (np.abs(trades) < case["min_quantity"]), 0.0, case["min_quantity"])
    case["bounds"] = (min(case["bounds"][0], float(w.min()) - MARGIN), max(case["bounds"][1], float(w.max()) + MARGIN))
    limits = {
        "band": float(np.abs(w - b).max()) + MARGIN,
        "turnover": 0.5 * float(np.abs(z).sum()) + MARGIN,
        "leverage": float(np.abs(w).sum()) + MARGIN,
        "orders": int(np.count_nonzero(z)),
        "names": int(np.count_nonzero(np.abs(w) > 1e-12)),
    }
    return case | {name: limit if rng.random() < 0.6 else None for name, limit in limits.items()}


def judged(seed: int) -> bool | None:
    """Whether a plan was found in a case that has one; None if the case has none. What else is wrong fails."""
    case = tight_case(seed)
    if case is None:
        return None
    best = brute_force(case)
    assert np.isfinite(best), seed
    rebalancer, table = problem_of(case)
    plan = rebalancer.solve(table)
    assert "proven" not in plan.message, (seed, plan.message)
    if plan.status.ok:
        assert plan.bound <= best + 1e-12 + 1e-9 * abs(best), seed
        assert plan.objective >= best - 1e-12 - 1e-9 * abs(best), seed
    return plan.status.ok


@pytest.mark.slow
def test_a_plan_is_found_where_there_is_one() -> None:
    found = [answer for seed in range(24) if (answer := judged(seed)) is not None]
    assert len(found) > 12
    assert all(found)


@pytest.mark.parametrize("seed", [87, 155, 211])
def test_the_program_finds_what_the_search_does_not(seed: int) -> None:
    """Margins of 1e-6 of NAV under limits on both sides, 6 to 14 assets: the search alone found nothing."""
    case = planted(seed)
    problem = case.rebalancer.problem(case.table)
    solution = solve(problem)
    assert solution.weights is not None
    state, proven = feasible(Search(Lots.of(problem, problem.lower)), solution.weights)
    assert state is not None and not proven
    assert state.violation <= 1e-12


def test_what_a_stricter_form_cannot_keep_is_not_refuted() -> None:
    """A health factor while the cash may be a little below zero: the form with the steeper slope has no plan."""
    case = planted(3)
    plan = case.rebalancer.solve(case.table)
    assert plan.status.ok, plan.message


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "gap"), [(20, 0.7), (155, 0.55)])
def test_each_level_of_effort_goes_further_on_the_same_way(seed: int, gap: float) -> None:
    """Plans and bounds of more effort are at least as good, and those of exact mode as those of its effort."""
    case = planted(seed)
    plans = [case.rebalancer.solve(case.table, effort=effort) for effort in (0, 1, 2)]
    plans.append(case.rebalancer.solve(case.table, exact=True, effort=2, gap=gap, time_limit=None))
    assert all(plan.status.ok for plan in plans)
    objectives, bounds = [plan.objective for plan in plans], [plan.bound for plan in plans]
    assert objectives == sorted(objectives, reverse=True)
    assert bounds == sorted(bounds)
    assert plans[2].gap < plans[1].gap
    assert plans[3].gap <= gap * plans[3].objective


def test_the_time_is_that_of_everything() -> None:
    """With no time at all: what the first descent finds, or nothing, and nothing is said to be proven."""
    for seed in (20, 155):
        case = planted(seed)
        plan = case.rebalancer.solve(case.table, exact=True, time_limit=0.0)
        assert plan.status.ok or "proven" not in plan.message


def test_the_order_of_rows_changes_nothing() -> None:
    case = planted(23)
    turned = case.table.iloc[np.random.default_rng(1).permutation(len(case.table))]
    orders = [case.rebalancer.solve(table).orders for table in (case.table, turned)]
    assert orders[0]["quantity"].sort_index().equals(orders[1]["quantity"].sort_index())


if __name__ == "__main__":
    began, count = time.perf_counter(), int(sys.argv[1])
    answers = [answer for seed in range(count) if (answer := judged(seed)) is not None]
    print(f"{answers.count(False)} of {len(answers)} not found, {time.perf_counter() - began:.0f} s")
