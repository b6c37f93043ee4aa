"""Portfolios with a planted point that keeps every rule: none may be called infeasible, or be left without an answer.

The points and the limits around them are made from the tables' columns (`strategies`), not by the library.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from strategies import RISKS, RULES, Instance, instance, possible

from equipoise.constraints.errors import InputError
from equipoise.optimizer.solvers.choose import solve
from scorecard.figure import Result, Row

#: How much room the planted point has, of each limit's figure: from a ten-millionth to a third.
NARROWEST, WIDEST = 1e-7, 0.3


def planted(count: int, seed: int = 4) -> Iterator[tuple[int, Instance]]:
    """`count` portfolios under one to six rules of every kind but whole lots, by number."""
    kinds = [name for name in RULES if name != "lot_size"]
    number = made = 0
    while made < count:
        rng = np.random.default_rng([seed, number])
        risk = RISKS[rng.integers(len(RISKS))]
        rules = possible([str(name) for name in rng.permutation(kinds)[: rng.integers(1, 7)]], risk)
        slack = float(np.exp(rng.uniform(np.log(NARROWEST), np.log(WIDEST))))
        number += 1
        yield number - 1, instance(rng, rules=rules, risk=risk, slack=slack)
        made += 1


def convex_answers(count: int) -> Result:
    """Of portfolios with a planted point, those that are called infeasible or are left unsolved."""
    missed, tried = [], 0
    for number, drawn in planted(count):
        try:
            problem = drawn.problem()
        except InputError:
            continue  # a rule that does not take the planted limit
        tried += 1
        answer = solve(problem)
        if answer.weights is None:
            names = ", ".join(rule.title for rule in drawn.policy.constraints)
            missed.append(f"portfolio {number} ({names}): {answer.status.name}: {answer.explanation}")
    return Result(f"{len(missed)} of {tried}", not missed, tuple(missed))


ROWS = [Row(4, "planted points called infeasible or left unsolved (convex)", "0", convex_answers, 40, 10_000)]
