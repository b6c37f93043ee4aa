"""Why nothing keeps all rules: in the rules' own names, with the numbers that show it, and proven.

First what arithmetic shows (bounds that cross, bounds that cannot add up to 1). Then the program is solved
with its rows elastic: the least total excess over all limits. Its prices make a proof (`lower_bound` of the
zero objective above 0), its excesses name the rules that must give way, and one more program for each of
those says what the least value is that the other rules allow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.base import Array, Cone, Row
from equipoise.optimizer.certificate import lower_bound, reduced_costs
from equipoise.optimizer.problem import Problem
from equipoise.optimizer.solution import FEASIBILITY_TOLERANCE, ROUNDING_TOLERANCE, Prices, Status

_SUPPORTED = 20  # how often the rows of envelopes are added
_SHOWN = 5  # names of assets in a sentence


@dataclass(frozen=True)
class Explanation:
    """`status` INFEASIBLE only if proven; `rules` are the titles of the rules in conflict."""

    status: Status
    text: str
    rules: tuple[str, ...] = ()


def at_once(problem: Problem) -> Explanation | None:
    """Conflicts that arithmetic shows, without a solver; None if there is none of these."""
    return _crossing(problem) or _sums(problem)


def explain(problem: Problem) -> Explanation:
    """The explanation of a problem for which no solver found an answer."""
    found = at_once(problem)
    if found is not None:
        return found
    if problem.opaque:
        return _without(problem, "Custom rules", [piece for _, piece in problem.opaque])
    if problem.cones:
        return _cone(problem)
    return _rows(problem)


def _crossing(problem: Problem) -> Explanation | None:
    crossed = np.flatnonzero(problem.lower > problem.upper + ROUNDING_TOLERANCE)
    if not len(crossed):
        return None
    sentences, rules = [], []
    for i in crossed[:_SHOWN]:
        low = max(problem.bounds, key=lambda found: float(found[1].lower[i]))
        high = min(problem.bounds, key=lambda found: float(found[1].upper[i]))
        rules += [low[0], high[0]]
        sentences.append(
            f"{problem.assets[i]}: {low[0]} ({low[1].label}) asks for at least {_percent(problem.lower[i])}, "
            f"{high[0]} ({high[1].label}) for at most {_percent(problem.upper[i])}"
        )
    if len(crossed) > _SHOWN:
        sentences.append(f"and {len(crossed) - _SHOWN} more assets like these")
    return Explanation(Status.INFEASIBLE, "; ".join(sentences) + ".", _unique(rules))


def _sums(problem: Problem) -> Explanation | None:
    if problem.accounts is not None:
        return None  # what one account lacks another may send
    for edge, name, sign in ((problem.upper, "upper", 1.0), (problem.lower, "lower", -1.0)):
        total = float(np.sum(edge))
        if sign * (total - 1.0) < -ROUNDING_TOLERANCE:
            rules = _unique(
                title
                for title, bound in problem.bounds
                if np.any(np.isfinite(bound.upper if sign > 0 else bound.lower))
            )
            return Explanation(
                Status.INFEASIBLE,
                f"The {name} limits of all assets and the cash ({', '.join(rules)}) add up to {_percent(total)} of "
                f"NAV, {'less' if sign > 0 else 'more'} than the 100 % that weights add up to.",
                rules,
            )
    return None


def _rows(problem: Problem) -> Explanation:
    for _ in range(_SUPPORTED):
        together = _together(problem)
        weights, prices, excess = _elastic(problem, together)
        if weights is None or problem.beyond(weights) <= np.max(excess, initial=0.0) + FEASIBILITY_TOLERANCE:
            break
        problem = problem.supported(weights)
    rows = problem.rows
    if weights is None or prices is None:
        return Explanation(Status.UNSOLVED, "No solver answered, and neither did the search for a conflict.")
    proof = lower_bound(problem, weights, prices, objective=0.0)
    over = np.flatnonzero(excess > 10 * FEASIBILITY_TOLERANCE)
    if proof <= ROUNDING_TOLERANCE or not len(over):
        return Explanation(
            Status.UNSOLVED,
            "No solver gave an answer that passed the check, and no conflict between the rules was proven.",
        )
    sentences, rules, enough = [], [], False
    for j in over[np.unique(together[over], return_index=True)[1]]:
        alone = (together == together[j]).astype(np.intp)
        relaxed = _elastic(problem, alone)
        enough |= relaxed[0] is not None
        sentence, against = _least(problem, int(j), *relaxed)
        sentences.append(sentence)
        rules += [rows.titles[j], *against]
    if not enough:
        sentences.append("Only together can they be relaxed by these amounts.")
    return Explanation(Status.INFEASIBLE, " ".join(sentences), _unique(rules))


def _together(problem: Problem) -> NDArray[np.intp]:
    """A number for each row; the rows that were met of one envelope have the same."""
    numbers = np.arange(1, len(problem.rows.upper) + 1, dtype=np.intp)
    first = sum(isinstance(piece, Row) for _, piece in problem.pieces)
    if problem.found:
        numbers[first : first + len(problem.found)] = first + 1 + np.arange(len(problem.found)) % len(problem.envelopes)
    return numbers


def _least(
    problem: Problem, j: int, weights: Array | None, prices: Prices | None, excess: Array
) -> tuple[str, tuple[str, ...]]:
    """What the other rules allow of row j, as a sentence, and the rules that hold it there."""
    rows = problem.rows
    title, row = rows.titles[j], rows.rows[j]
    limit = row.stated
    if weights is None or prices is None:
        return f"{title} ({row.label}, limit {_shown(limit, row)}) is in conflict, but not alone.", ()
    least = float(excess[j])
    held = rows.of(problem.before, np.zeros_like(problem.before), 0.0) - rows.upper
    off = (problem.before < problem.lower - ROUNDING_TOLERANCE) | (problem.before > problem.upper + ROUNDING_TOLERANCE)
    cashes = list(problem.cashes)
    off[cashes] = problem.before[cashes] > problem.upper[cashes]  # its floor is a row
    if not off.any() and np.all(np.delete(held, j) <= 0) and held[j] < least:
        weights, least = problem.before, float(held[j])  # costs so steep that no solver got near: holding is better
    per = 1.0 if row.per is None else row.per.of(weights, weights - problem.before)
    value = row.shown(least, per)
    against = tuple(title for title in binding(problem, weights, prices) if title != rows.titles[j])
    others = f" while {', '.join(against)} {'holds' if len(against) == 1 else 'hold'}" if against else ""
    if row.at_least:
        return (
            f"{title}: the {row.label} reaches {_shown(value, row)} at best{others}; "
            f"{_shown(limit, row)} is asked for.",
            against,
        )
    return (
        f"{title}: the {row.label} must be at least {_shown(value, row)}{others}; the limit is {_shown(limit, row)}.",
        against,
    )


def _cone(problem: Problem) -> Explanation:
    """The least of a cone's norm that the other rules allow, against its limit."""
    from equipoise.optimizer.program import solve

    title, cone = problem.cones[0]
    rest = replace(problem, pieces=tuple((t, p) for t, p in problem.pieces if not isinstance(p, Cone)))
    # The cone's own norm as the only objective.
    risk = replace(problem.risk, factors=cone.matrix, specific=cone.diagonal**2)
    free = replace(rest, risk=risk, cost=problem.cost.of(len(problem.assets)), aversion=1.0)
    if not np.array_equal(cone.centre, problem.target):
        return Explanation(
            Status.UNSOLVED, f"No solver gave an answer that passed the check; {title} may be in conflict."
        )
    answer = solve(free)
    if answer.weights is None:
        found = explain(rest)
        return replace(found, text=f"{found.text} ({', '.join(t for t, _ in problem.cones)} not counted.)")
    least = np.sqrt(max(2.0 * answer.bound, 0.0))
    if least <= cone.upper:
        return Explanation(
            Status.UNSOLVED,
            "No solver gave an answer that passed the check, and no conflict between the rules was proven.",
        )
    against = binding(free, answer.weights, answer.prices or Prices.none(free))
    return Explanation(
        Status.INFEASIBLE,
        f"{title}: the {cone.label} must be at least {_percent(least)} while {', '.join(against)} hold; the limit is "
        f"{_percent(cone.upper)}.",
        _unique([title, *against]),
    )


def _without(problem: Problem, what: str, pieces: list[object]) -> Explanation:
    from equipoise.optimizer.program import solve

    rest = replace(problem, pieces=tuple((t, p) for t, p in problem.pieces if p not in pieces))
    if solve(rest).weights is None:
        return explain(rest)
    titles = _unique(t for t, p in problem.pieces if p in pieces)
    return Explanation(
        Status.UNSOLVED,
        f"No answer passed the check with {what} ({', '.join(titles)}); without them there is one, so that they are "
        "in conflict with the other rules, or too hard for the solvers.",
        titles,
    )


def binding(problem: Problem, weights: Array, prices: Prices) -> tuple[str, ...]:
    """The titles of the rules that hold a solution where it is: rows with a price, bounds that push."""
    largest = max(float(np.max(prices.rows, initial=0.0)), 1e-12)
    titles = [t for t, price in zip(problem.rows.titles, prices.rows, strict=True) if price > 1e-4 * largest]
    pushed = np.abs(reduced_costs(problem, weights, prices, objective=0.0)) > 1e-3 * largest
    for title, bound in problem.bounds:
        at = (np.abs(weights - bound.lower) < 1e-7) | (np.abs(weights - bound.upper) < 1e-7)
        at[list(problem.cashes)] = False
        assets = [problem.assets[i] for i in np.flatnonzero(at & pushed)]
        if assets:
            more = f" and {len(assets) - _SHOWN} more" if len(assets) > _SHOWN else ""
            titles.append(f"{title} ({bound.label}: {', '.join(assets[:_SHOWN])}{more})")
    return _unique(titles)


def _elastic(problem: Problem, elastic: NDArray[np.intp]) -> tuple[Array | None, Prices | None, Array]:
    from equipoise.optimizer.program import LADDER, compiled

    program = compiled(problem, elastic)
    for _, solver, settings in LADDER:
        said, weights, prices = program.solve(problem, solver, settings)
        if weights is not None and said in ("optimal", "optimal_inaccurate"):
            return weights, prices, program.excess()
    return None, None, np.zeros(len(elastic))


def _shown(value: float, row: Row) -> str:
    if row.per is None:
        return _percent(value)
    return f"{value if abs(value) > 1e-9 else 0.0:.4g}"


def _percent(value: float) -> str:
    return f"{100 * value if abs(value) > 1e-12 else 0.0:.4g} %"


def _unique(titles: object) -> tuple[str, ...]:
    return tuple(dict.fromkeys(titles))  # type: ignore[call-overload]
