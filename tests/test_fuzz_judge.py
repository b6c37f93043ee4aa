"""The fuzzed figures' judge against the library's own check, at trades that nobody optimised: they must agree."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from scorecard.fuzz_books import Books, exact, misses
from scorecard.fuzz_cases import CASH, CONVEX, DISCRETE, Plant, drawn_costs, drawn_risk, drawn_table

from equipoise import InputError, Rebalancer
from equipoise.optimizer.verification.exact import verify


@pytest.mark.parametrize("maker", [*CONVEX, *DISCRETE], ids=lambda maker: maker.__name__)
def test_the_judge_and_the_check_agree(maker: object) -> None:
    verdicts: list[bool] = []
    for seed in range(9):
        rng = np.random.default_rng([2028, seed])
        table = drawn_table(rng, int(rng.integers(1, 9)), Fraction(10) ** int(rng.integers(-18, 7)))
        risk, covariance = drawn_risk(rng, list(table.index[:-1]))
        if covariance is None:
            continue
        made, costs = drawn_costs(rng, fees=True)
        books = Books(table, CASH, {}, costs)
        planted = drawn_trades(rng, books, 0.02)
        point = Books(table, CASH, planted, costs)
        weights = {a: float(x / point.nav) for a, x in point.early.items()}
        scale = exact(float(books.nav)) / 10**6
        plant = Plant(rng, table, covariance, weights, point, scale, 0.05)  # type: ignore[arg-type]
        rule, judge = maker(plant)  # type: ignore[operator]
        rebalancer = Rebalancer(cash=CASH, risk=risk, costs=made, constraints=[rule])
        try:
            problem = rebalancer.problem(table)
        except InputError:
            continue  # a position that is wanted on the other side
        for trades in (planted, *(drawn_trades(rng, books, size) for size in (0.0, 0.3, 1.5))):
            after = Books(table, CASH, trades, costs)
            checks = verify(problem, [trades.get(a, Fraction(0)) for a in problem.assets], whole_lots=True).checks
            passed = all(check.passed for check in checks if check.rule == rule.title)
            assert passed == (not misses(after, {"rule": judge}, whole=True)), (seed, rule)
            verdicts.append(passed)
    if maker not in DISCRETE:  # random trades seldom break those
        assert len(set(verdicts)) == 2, "kept and broken must both be seen"


def drawn_trades(rng: np.random.Generator, books: Books, size: float) -> dict[str, Fraction]:
    part = {a: rng.normal(0, size) * (rng.random() < 0.7) for a in books.units}
    return {a: exact(x) * books.nav / books.price[a] for a, x in part.items() if x}
