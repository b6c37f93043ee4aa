"""Which rules stay on the fast path: how random accounts with each of them are solved, and why not by newton.

    python tests/fast_path.py [--count 200]

One line a rule of `strategies.RULES`, with random holdings, risk, costs and limits: how many were solved by holding,
threshold and newton, how many newton handed on to the program, and why others go there at once. `rows` is the mean
number of supporting rows of those that newton solved with an envelope.
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np
from strategies import NEED_RISK, RULES, many

from equipoise.optimizer.solvers.choose import solve
from equipoise.optimizer.solvers.newton import newton


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    args = parser.parse_args()
    print(f"{'rule':<20}{'fast':>6}{'handed on':>11}{'program':>9}{'rows':>6}  why")
    for name in RULES:
        found: Counter[str] = Counter()
        rows: list[int] = []
        why: Counter[str] = Counter()
        risk = "factor" if name in NEED_RISK else "any"
        for drawn in many(args.count, seed=7, rules=[name], risk=risk):
            problem = drawn.problem()
            refused = newton.refusal(problem)
            if refused is not None:
                found["program"] += 1
                why[refused] += 1
                continue
            answer = solve(problem)
            fast = answer.solver in ("holding", "threshold", newton.NAME)
            found["fast" if fast else "handed on"] += 1
            if fast and answer.problem is not None:
                rows.append(len(answer.problem.found))
        mean = f"{np.mean(rows):.1f}" if rows else ""
        reason = ", ".join(why)
        print(
            f"{name:<20}{found['fast']:>6}{found['handed on']:>11}{found['program']:>9}{mean:>6}  {reason}", flush=True
        )


if __name__ == "__main__":
    main()
