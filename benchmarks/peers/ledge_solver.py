"""ledge-portfolio: ADMM in Rust for exactly this problem, one thread (RAYON_NUM_THREADS=1).

Its batch call takes one problem object an account and walks through dates; where there is one date, it has no
factorisation to use again. Objects are built before the clock starts, as in its own published benchmark.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from ledge import PortfolioProblem, solve_batch

from .instances import Array, Family, Instance
from .peer import Many, One, UnstatedError

TIGHT = {"absolute_tolerance": 1e-9, "relative_tolerance": 1e-9, "max_iterations": 100_000}


def _problem(p: Instance) -> PortfolioProblem:
    return PortfolioProblem(
        np.ascontiguousarray(p.factors.T),
        np.eye(len(p.factors)),
        p.specific,
        p.gain if p.gain is not None else np.zeros(p.n),
        risk_aversion=p.aversion,
        lower_bounds=p.lower,
        upper_bounds=p.upper,
        previous_weights=p.before,
        turnover_penalty=p.penalty,
        l1_turnover_costs=p.cost,
        benchmark_weights=p.target if np.any(p.target) else None,
    )


def _checked(family: Family) -> None:
    if family.instances[0].rows is not None:
        raise UnstatedError("no limit on turnover, nor on w⁺ and w⁻ apart")


def cold(family: Family, **settings: Any) -> One:
    _checked(family)

    def one(instance: Instance, account: int) -> Array | None:
        return np.asarray(_problem(instance).solve(raise_on_failure=False, **settings).weights)

    return one


def tight(family: Family) -> One:
    return cold(family, **TIGHT)


def _step(instance: Instance) -> dict[str, Array]:
    assert instance.gain is not None
    return {"expected_returns": instance.gain, "previous_weights": instance.before}


def sequence(family: Family) -> One:
    _checked(family)
    if family.dates == 1:
        raise UnstatedError("a sequence keeps its bounds, ours differ")
    sequences = [_problem(instance).sequence() for instance in family.by_date[0]]

    def one(instance: Instance, account: int) -> Array | None:
        return np.asarray(sequences[account].solve_next(raise_on_failure=False, **_step(instance)).weights)

    return one


def batch(family: Family) -> Many:
    _checked(family)
    problems = [_problem(instance) for instance in family.by_date[0]]
    walks = family.dates > 1

    def many(dates: list[list[Instance]]) -> tuple[Sequence[Array | None], float]:
        accounts = len(dates[0])
        steps = [[_step(date[a]) if walks else {} for date in dates] for a in range(accounts)]
        began = time.process_time()
        results = solve_batch(problems[:accounts], steps, raise_on_failure=False)
        seconds = time.process_time() - began
        return [np.asarray(results[a][t].weights) for t in range(len(dates)) for a in range(accounts)], seconds

    return many
