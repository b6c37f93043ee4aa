"""A longer campaign than the suite: random accounts with a feasible point planted, from table to verified orders.

    python tests/campaign.py [--count 1000] [--seed 0] [--convex]

With --convex the orders are not made: only the convex answers, which is many times as fast. Prints how many of the
problems that Newton's method takes it had to hand on, how often each status and solver was reached, and every account
that went wrong: an exception, no plan although one was planted, a plan worse than the planted point, or a convex gap
that is not closed. Exit code 1 if there was one.
"""

from __future__ import annotations

import argparse
import collections
import sys

import numpy as np
from strategies import instance

from equipoise import Status
from equipoise.optimizer.plans.make import finished
from equipoise.optimizer.plans.plan import Plan
from equipoise.optimizer.solvers.choose import solve
from equipoise.optimizer.solvers.newton import newton


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--convex", action="store_true")
    args = parser.parse_args()
    statuses: collections.Counter[str] = collections.Counter()
    wrong = taken = handed_on = 0
    for seed in range(args.seed, args.seed + args.count):
        made = instance(np.random.default_rng(seed))
        rules = ", ".join(type(rule).__name__ for rule in made.policy.constraints)
        try:
            problem = made.problem()
            solution = solve(problem)
            plan = Plan(solution.status, None) if args.convex else finished(problem, solution)
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        else:
            said = [attempt.said for attempt in solution.attempts if attempt.solver == newton.NAME]
            taken, handed_on = taken + (newton.refusal(problem) is None), handed_on + ("not solved" in said)
            statuses[f"{plan.status.name} by {solution.solver}"] += 1
            planted = problem.objective(made.planted_weights())
            room = 1e-9 * abs(planted) + 1e-12
            fault = ""
            if not plan.status.ok and plan.status is not Status.NO_LOT_PLAN:
                fault = f"{plan.status.name}: {plan.message}"
            elif plan.status.ok and (solution.objective > planted + room or solution.bound > planted + room):
                fault = f"objective {solution.objective:g}, bound {solution.bound:g}, planted {planted:g}"
            elif plan.status.ok and solution.gap > max(1e-6 * abs(solution.objective), 1e-11):
                fault = f"gap {solution.gap:g} of {solution.objective:g}"
        if fault:
            wrong += 1
            print(f"seed {seed} ({rules}): {fault}")
    for status, count in statuses.most_common():
        print(f"{count:6} {status}")
    print(f"{handed_on} handed on of {taken} that newton takes")
    print(f"{wrong} wrong of {args.count}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
