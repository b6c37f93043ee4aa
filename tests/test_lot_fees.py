"""Fees, counts and least positions: exact answers and bounds against brute force, and what a fee does to a plan."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import test_lot_bound


def small_case(seed: int) -> dict:
    """A case of `test_lot_bound` with some of: a fee per order, a minimum commission, limits on counts and sizes."""
    rng = np.random.default_rng(10_000 + seed)
    case = test_lot_bound.small_case(seed)
    n = case["n"]
    if rng.random() < 0.5:
        case["fixed"] = float(rng.choice([0.05, 0.5, 3.0]))
    if rng.random() < 0.35:
        case["commission"] = (float(rng.choice([0.2, 1.0, 4.0])), float(rng.choice([0.0, 0.003, 0.02])))
    if rng.random() < 0.35:
        case["orders"] = int(rng.integers(0, n + 1))
    if rng.random() < 0.35:
        case["names"] = int(rng.integers(1, n + 1))
    if rng.random() < 0.35:
        case["least"] = (float(rng.choice([0.0, 0.05, 0.2])), float(rng.choice([0.0, 40.0, 150.0])))
        if not any(case["least"]):
            case["least"] = (0.1, 0.0)
    if rng.random() < 0.25:
        case["max_notional"] = float(rng.choice([90.0, 200.0, 400.0]))
    return case


def judged(seed: int) -> tuple[float, float]:
    """Exact mode and the bound of one case against brute force: (gap at default effort, plan above the optimum)."""
    case = small_case(seed)
    best = test_lot_bound.brute_force(case)
    rebalancer, table = test_lot_bound.problem_of(case)
    plan, exact = rebalancer.solve(table), rebalancer.solve(table, exact=True, time_limit=None)
    assert exact.status.ok == np.isfinite(best), (seed, exact.message)
    if not np.isfinite(best):
        assert not plan.status.ok
        return 0.0, 0.0
    assert exact.objective == pytest.approx(best, rel=1e-6, abs=1e-11), seed
    for one in (plan, exact):
        assert not one.status.ok or one.bound <= best + 1e-12 + 1e-9 * abs(best), seed
        assert not one.status.ok or one.objective >= best - 1e-12 - 1e-9 * abs(best), seed
    assert exact.gap <= 1e-6 * abs(best) + 1e-11, seed
    if not plan.status.ok:
        return np.nan, np.nan
    return plan.gap / max(abs(best), 1e-12), plan.objective / best - 1.0 if best else 0.0


@pytest.mark.parametrize("seed", range(40))
def test_equal_to_brute_force(seed: int) -> None:
    judged(seed)


def main() -> None:
    """All of a range of cases: python tests/test_lot_fees.py [first] [last]"""
    first, last = (int(x) for x in sys.argv[1:3]) if len(sys.argv) > 2 else (0, 1000)
    found, wrong = [], 0
    for seed in range(first, last):
        try:
            found.append(judged(seed))
        except AssertionError as error:
            wrong += 1
            print(seed, str(error).splitlines()[:2], flush=True)
    gaps, above = np.array(found).T
    print(
        f"{last - first} cases: {wrong} wrong; at default effort {np.isnan(gaps).sum()} without a plan, median gap "
        f"{np.nanmedian(gaps):.2%}, plan equal to the optimum in {np.nanmean(above < 1e-9):.1%}, "
        f"95th percentile {np.nanquantile(above, 0.95):.3%}, largest {np.nanmax(above):.2%} above it"
    )


if __name__ == "__main__":
    main()
